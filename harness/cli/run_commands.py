"""The commands that train: `run`, `sweep` and `study`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import (
    DryRun,
    From,
    Include,
    Names,
    Order,
    Out,
    Overrides,
    Render,
    SuiteName,
    Track,
    Workers,
    check_entries,
    check_order,
    read_suite,
    whole_numbers,
)
from harness.cli.reporters import Reporters, ReportsOnTheWay
from harness.errors import ConfigError
from harness.terminal.console import SafeConsole, announce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config.run_spec import RunSpec
    from harness.config.suite import Suite
    from harness.pipeline.sweeps.study_runs import Plan

# torchrun sets this variable in the processes that it starts; torch looks at it too, but takes a second to import.
TORCHRUN = "TORCHELASTIC_RUN_ID"


def run(
    suite: SuiteName,
    adapter: Annotated[str | None, typer.Option(help="One of the suite's adapters; default: its first.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the suite's first.")] = None,
    order: Order = "default",
    out: Out = Path("runs"),
    from_stage: From = None,
    overrides: Overrides = None,
    include_path: Include = None,
    track: Track = None,
    report: Render = True,
    dry_run: DryRun = False,
) -> None:
    """Adapt a student stage by stage with one adapter and one seed, evaluating after each stage.

    Under torchrun, all of its processes train each stage together.
    """
    with ExitStack() as stack:
        if TORCHRUN in os.environ:
            from harness.pipeline.processes.launched_ranks import follow_first_process, leading, this_launch

            if this_launch().rank:
                follow_first_process()
                return
            stack.enter_context(leading())
            announce(f"torchrun started {this_launch().size} processes; they train each stage together")
            overrides = [*(overrides or []), f"parallel.processes={this_launch().size}"]
        announce(f"reading suite {suite}")
        loaded = read_suite(suite, overrides, include_path, track)
        entry = adapter or next(iter(loaded.adapters))
        specs = _plan(loaded, [entry], [loaded.seeds[0] if seed is None else seed], order, out, from_stage)
        _do_runs(specs, 1, dry_run, report)


def sweep(
    suite: SuiteName,
    adapter: Names = None,
    seed: Names = None,
    order: Order = "default",
    out: Out = Path("runs"),
    from_stage: From = None,
    workers: Workers = None,
    overrides: Overrides = None,
    include_path: Include = None,
    track: Track = None,
    report: Render = True,
    dry_run: DryRun = False,
    ray: Annotated[
        str | None, typer.Option(help="The address of a Ray cluster for the runs, or `auto` for this machine's.")
    ] = None,
) -> None:
    """Do the runs of several adapters and seeds, then report on them."""
    _refuse_torchrun("sweep")
    if ray is not None and workers is not None:
        raise ConfigError(
            "--workers limits the runs on this machine, but with --ray the cluster places them; leave --workers out, and set "
            "what one run needs under the suite's `resources`"
        )
    announce(f"reading suite {suite}")
    loaded = read_suite(suite, overrides, include_path, track)
    entries = adapter.split(",") if adapter else list(loaded.adapters)
    seeds = whole_numbers("--seed", seed) if seed else list(loaded.seeds)
    if len(set(seeds)) > len(loaded.seeds):
        loaded = loaded.model_copy(update={"seeds": tuple(dict.fromkeys(seeds))})  # the runs record what is planned
    _do_runs(_plan(loaded, entries, seeds, order, out, from_stage), workers, dry_run, report, ray)


def study(
    name: Annotated[str, typer.Argument(help="A study's name (tiny) or the path of its YAML file.")] = "tiny",
    out: Out = Path("runs"),
    workers: Workers = None,
    overrides: Overrides = None,
    page: Annotated[
        Path | None, typer.Option(help="The page; default: study-<name>.md in the folder of the runs.")
    ] = None,
    max_hours: Annotated[float, typer.Option(help="Refuse to start if the estimate is longer.")] = 2.0,
    render_only: Annotated[bool, typer.Option(help="Do no run; write the page from the finished ones.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the cost and the runs; write nothing.")] = False,
) -> None:
    """Do the unfinished runs of a study, which varies one factor at a time, then write its page."""
    _refuse_torchrun("study")
    announce(f"reading study {name}")

    from harness.pipeline.sweeps.study_runs import plan_study

    console = SafeConsole()
    planned = plan_study(name, overrides or [], out)
    if overrides and page is None and not dry_run:
        raise ConfigError(
            f"{planned.page} is the page of study {name} without --set; name another file for this variant, for example "
            f"--page {out / 'study.md'}"
        )
    if not render_only:
        _do_study(console, planned, workers, max_hours, dry_run)
    if not dry_run:
        Reporters(console).write_study(planned, page or planned.page)


def _refuse_torchrun(command: str) -> None:
    if TORCHRUN in os.environ:
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes of harness {command}, which does many runs; "
            f"start `harness run` under torchrun, once for each run, or harness {command} without it"
        )


def _plan(
    suite: Suite, entries: list[str], seeds: list[int], order: str, out: Path, from_stage: str | None
) -> list[RunSpec]:
    """Return the requested runs, each once; raises `ConfigError` for what the suite or this machine does not provide."""
    check_entries(suite, entries)

    from harness.config.run_spec import plan_runs

    specs = plan_runs(suite, list(dict.fromkeys(entries)), list(dict.fromkeys(seeds)), order, out)
    check_order(specs[0])

    from harness.pipeline.adapter_checks import check_adapters
    from harness.rundir.process.trackers import check_trackers

    check_adapters(suite, entries)
    check_trackers(suite.trackers)
    if from_stage is None:
        return specs

    from harness.pipeline.branch import start_from

    return [start_from(spec, from_stage) for spec in specs]


def _do_runs(
    specs: Sequence[RunSpec], workers: int | None, dry_run: bool, report: bool, ray: str | None = None
) -> None:
    """Print the plan in a dry run; else do the unfinished runs with a progress display and, with `report`, report on all."""
    console = SafeConsole()
    reporters = Reporters(console)
    if dry_run:
        from harness.pipeline.dry_run import print_dry_run

        print_dry_run(console, specs)
        reporters.foresee(specs)
        console.print("dry run: nothing was written")
        return

    from harness.pipeline.branch import note_starts
    from harness.pipeline.finished_runs import left_to_do
    from harness.pipeline.sweeps.sweep import default_workers, sweep
    from harness.rundir.process.progress import Display

    todo = left_to_do(specs)
    note_starts(todo)
    if todo:
        with Display(console) as display:
            on_the_way = ReportsOnTheWay(display, reporters, specs, todo)
            show, after_run = (on_the_way, on_the_way.after_run) if report else (display, lambda _: None)
            if ray is None:
                sweep(todo, workers or default_workers(todo), show, after_run)
            else:
                from harness.pipeline.sweeps.ray_sweep import sweep_on_ray

                sweep_on_ray(todo, ray, show, after_run)
    else:
        console.print(f"all {len(specs)} runs are finished; nothing to do")
    if report:
        reporters.summarise(specs)
    else:
        runs = quote(str(specs[0].out / specs[0].suite.name))
        console.say(f"no report: `harness report {runs}` renders it")


def _do_study(console: SafeConsole, planned: Plan, workers: int | None, max_hours: float, dry_run: bool) -> None:
    """Print what a study will cost, then do its unfinished runs; the page is written once, at the end."""
    from harness.pipeline.adapter_checks import check_adapters
    from harness.pipeline.finished_runs import left_to_do
    from harness.pipeline.sweeps.sweep import default_workers, sweep
    from harness.rundir.process.progress import Display

    todo = left_to_do(planned.specs)
    workers = workers or default_workers(todo or planned.specs)
    for suite in {spec.suite.name: spec.suite for spec in planned.specs}.values():
        check_adapters(suite, {spec.entry for spec in planned.specs if spec.suite.name == suite.name})
    console.print(planned.cost(workers), highlight=False, soft_wrap=True)
    if dry_run:
        console.say("\n".join(str(spec.path) for spec in todo))
        Reporters(console).foresee_study(planned)
        console.print("dry run: nothing was written")
        return
    if (hours := planned.minutes(workers) / 60) > max_hours:
        raise ConfigError(
            f"study {planned.study.name} would take about {hours:.1f} hours, more than --max-hours {max_hours:g}; "
            "allow more, use more --workers, or drop values or seeds from the study"
        )
    if todo:
        finished = count(1)
        with Display(console) as display:
            sweep(
                todo,
                workers,
                display,
                lambda spec: console.say(f"run {next(finished)} of {len(todo)}: {spec.path}", wrap=True),
            )
