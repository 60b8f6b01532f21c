"""What the command line's longer commands do: runs with progress and a report at the end, a study's runs, lists of numbers.

Like `harness.cli.app`, whose body this is, it may import from everywhere, and does so inside functions to start quickly.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from harness.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from harness.config.run_spec import RunSpec
    from harness.config.suite import Suite
    from harness.pipeline.study import Plan
    from reports.claims.claim_file import ClaimFile
    from reports.data.methods import Method


def do_runs(
    console: Console,
    suite: Suite,
    adapters: list[str],
    seeds: list[int],
    order: str,
    out: Path,
    workers: int | None,
    dry_run: bool,
) -> None:
    """Check, then print the plan or do the runs with progress, the retention table and the report at the end."""
    from harness.pipeline.sweep import default_workers, sweep
    from harness.rundir.finished import is_finished
    from harness.rundir.progress import Display

    specs = _checked(suite, adapters, seeds, order, out)
    if dry_run:
        from harness.pipeline.plan import print_plan

        print_plan(console, specs)
        return
    todo = [spec for spec in specs if not is_finished(spec)]
    if todo:
        with Display(console) as display:
            sweep(todo, workers or default_workers(todo), display, lambda _: _render_meanwhile(console, specs))
    else:
        console.print(f"all {len(specs)} runs are finished; nothing to do")
    _summarise(console, specs)


def _checked(suite: Suite, adapters: list[str], seeds: list[int], order: str, out: Path) -> list[RunSpec]:
    """Return the runs asked for, each once; raises `ConfigError` for what the suite or this machine does not have."""
    from harness.adapter import check_adapters
    from harness.pipeline.sweep import plan
    from harness.rundir.trackers import check_trackers

    if unknown := sorted(set(adapters) - set(suite.adapters)):
        raise ConfigError(f"suite {suite.name} has no adapter {', '.join(unknown)}; it has {', '.join(suite.adapters)}")
    check_adapters(suite, adapters)
    check_trackers(suite.trackers)
    try:
        specs = plan(suite, list(dict.fromkeys(adapters)), list(dict.fromkeys(seeds)), order, out)
        _ = specs[0].stages
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return specs


def do_study(console: Console, planned: Plan, workers: int | None, max_hours: float, dry_run: bool) -> None:
    """Print what a study will cost, then do the runs that are left; the page needs all of them, so it comes after."""
    from harness.adapter import check_adapters
    from harness.pipeline.sweep import default_workers, sweep
    from harness.rundir.progress import Display

    todo = planned.todo
    workers = workers or default_workers(todo or planned.specs)
    for suite in {spec.suite.name: spec.suite for spec in planned.specs}.values():
        check_adapters(suite, {spec.entry for spec in planned.specs if spec.suite.name == suite.name})
    console.print(planned.cost(workers), highlight=False, soft_wrap=True)
    if dry_run:
        console.print("\n".join(str(spec.path) for spec in todo), markup=False, highlight=False, soft_wrap=True)
        console.print("dry run: nothing was written")
        return
    if (hours := planned.minutes(workers) / 60) > max_hours:
        raise ConfigError(
            f"study {planned.study.name} would take about {hours:.1f} hours, more than --max-hours {max_hours:g}; "
            "allow more, use more --workers, or drop values or seeds from the study"
        )
    if todo:
        with Display(console) as display:
            finished = count(1)
            sweep(
                todo,
                workers,
                display,
                lambda spec: console.print(
                    f"run {next(finished)} of {len(todo)}: {spec.path}", markup=False, highlight=False
                ),
            )


def _render_meanwhile(console: Console, specs: Sequence[RunSpec]) -> None:
    """Render while other runs go on; what keeps the report from being made must not stop them."""
    try:
        _render(specs)
    except HarnessError as error:
        console.print(f"[yellow]no report yet:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def _render(specs: Sequence[RunSpec]) -> Path:
    """Render the report over all runs of the suite in this output folder, other commands' included."""
    from reports.report.build import build_report

    folder = specs[0].out / specs[0].suite.name
    return build_report([folder], folder / "report")


def _summarise(console: Console, specs: Sequence[RunSpec]) -> None:
    from reports.data.frames import load
    from reports.terminal.retention_table import print_retention

    print_retention(console, load([spec.path for spec in specs]))
    console.print(f"report: {_render(specs)}", markup=False, highlight=False, soft_wrap=True)


def do_compare(
    console: Console,
    paths: Sequence[Path],
    out: Path | None,
    kind: str | None,
    stage: str | None,
    task: str | None,
    shown: Mapping[str, Any],
    margin: float,
    shared_items: bool,
    claims: Sequence[str],
) -> None:
    """Print a comparison, its sentences and notes, and write it as files where a folder is given."""
    from reports.compare.comparison import Comparison, Stages
    from reports.compare.headline import sentences_of
    from reports.compare.render_comparison import FORMATS, print_comparison, render_comparison, write_comparison
    from reports.data.methods import find_methods

    if kind not in (None, *FORMATS):
        raise ConfigError(f"--format {kind}: expected one of {', '.join(FORMATS)}")
    stages = _stages(stage, claims)
    files = read_claim_files(claims)
    methods = find_methods(paths, **shown, least=1 if len(stages) == 2 else 2)
    tasks = task.split(",") if task else []
    if len(stages) == 2:
        compared, sentences = Stages(methods, *stages, tasks=tasks), []
    else:
        compared = Comparison(methods, stages[0] if stages else None, tasks, shared_items, margin)
        sentences = sentences_of(compared)
    if kind is None:
        print_comparison(console, compared)
        for sentence in sentences:
            console.print(escape(sentence), highlight=False)
    else:
        typer.echo(render_comparison(compared, kind, sentences))
    if out:
        _name_files(write_comparison(compared, out, sentences))
    if files:
        _judge(console, files, methods, margin, out, kind)


def _stages(stage: str | None, claims: Sequence[str]) -> list[int]:
    """Return the stages of `--stage`: none, the last that counts, or two between which a run is compared with itself."""
    stages = whole_numbers("--stage", stage) if stage else []
    if len(stages) > 2:
        raise ConfigError(f"--stage {stage}: expected one stage, or two to compare a run with itself")
    if claims and len(stages) == 2:
        raise ConfigError("--claims is about methods, and two stages compare a run with itself; give one of the two")
    return stages


def read_claim_files(names: Sequence[str]) -> list[ClaimFile]:
    """Read files of claims, by path or by a shipped one's name, before anything else is done."""
    if not names:
        return []
    from reports.claims.claim_file import read_claims

    return [read_claims(name) for name in names]


def report_claims(
    console: Console, files: Sequence[ClaimFile], runs: Sequence[Path], folder: Path, grader: str
) -> None:
    """Judge claims on all methods of a report, print the verdicts, and write them beside it: of each suite and order apart."""
    if not files:
        return
    from harness.stats.matching import MARGIN
    from reports.data.frames import load
    from reports.data.methods import by_setting, methods_of

    settings = by_setting(methods_of(load(runs, grader)))
    for (suite, order), methods in settings.items():
        if len(settings) > 1:
            console.print(f"{suite}, {order}", highlight=False)
        _judge(console, files, methods, MARGIN, folder if len(settings) == 1 else folder / f"claims_{suite}_{order}")


def _judge(
    console: Console,
    files: Sequence[ClaimFile],
    methods: Sequence[Method],
    margin: float,
    folder: Path | None,
    kind: str | None = None,
) -> None:
    """Judge claims on methods, print the verdicts, in a format where one is named, and write them where there is a folder."""
    from reports.claims.judge_claims import verdicts
    from reports.claims.render_verdicts import print_verdicts, render_verdicts, write_verdicts

    found = verdicts([claim for file in files for claim in file.claims], methods, margin)
    if kind:
        typer.echo(f"\n{render_verdicts(found, files, kind)}")
    else:
        print_verdicts(console, found)
    if folder:
        _name_files(write_verdicts(found, files, folder))


def _name_files(written: Sequence[Path]) -> None:
    """Name what was written on stderr, so that a table on stdout can be piped."""
    for file in written:
        typer.echo(f"written: {file}", err=True)


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the numbers of a comma-separated option; raises `ConfigError` where one is none."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{option} {text}: found {text!r}, expected whole numbers with commas, for example 0,1,2"
        ) from error
