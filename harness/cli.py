"""The command line: thin commands over the pipeline, the sweep and the reports."""

from __future__ import annotations

import logging
import os
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from harness.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config import Suite
    from harness.spec import RunSpec
    from harness.study import Plan

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
tasks_app = typer.Typer(invoke_without_command=True, help="List the tasks, or check one.")
app.add_typer(tasks_app, name="tasks")
adapters_app = typer.Typer(invoke_without_command=True, help="List the adapters, or check one.")
app.add_typer(adapters_app, name="adapters")
console = Console()

SuiteName = Annotated[str, typer.Argument(help="A suite's name (tiny) or the path of its YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. training.optimizer.lr=1e-4.")]
Include = Annotated[list[Path] | None, typer.Option("--include-path", help="A folder with more tasks and suites.")]
Out = Annotated[Path, typer.Option(help="Where run directories go.")]
Names = Annotated[str | None, typer.Option(help="Comma-separated; default: all of the suite's.")]


def main() -> None:
    """Run the command line; an error that a user can mend is one sentence, not a traceback."""
    # Libraries' own bars would be drawn over ours; both settings are read when they are first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        app()
    except (HarnessError, OSError) as error:
        sentence = escape(" ".join(str(error).split()))
        Console(stderr=True).print(f"[bold red]error:[/] {sentence}", highlight=False, emoji=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def run(
    suite: SuiteName,
    adapter: Annotated[str | None, typer.Option(help="One of the suite's adapters; default: its first.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the suite's first.")] = None,
    order: Annotated[str, typer.Option(help="A named order of the stages.")] = "default",
    out: Out = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
    dry_run: Annotated[bool, typer.Option(help="Print what would be done and write nothing.")] = False,
) -> None:
    """Adapt a student stage by stage with one adapter and one seed, evaluating after each stage."""
    loaded = _load(suite, overrides, include_path)
    _go(
        loaded,
        [adapter or next(iter(loaded.adapters))],
        [loaded.seeds[0] if seed is None else seed],
        order,
        out,
        1,
        dry_run,
    )


@app.command()
def sweep(
    suite: SuiteName,
    adapter: Names = None,
    seed: Names = None,
    order: Annotated[str, typer.Option(help="A named order of the stages.")] = "default",
    out: Out = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; default: one per free processor.")
    ] = None,
    overrides: Overrides = None,
    include_path: Include = None,
    dry_run: Annotated[bool, typer.Option(help="Print what would be done and write nothing.")] = False,
) -> None:
    """Do the runs of several adapters and seeds, then report on them."""
    loaded = _load(suite, overrides, include_path)
    adapters = adapter.split(",") if adapter else list(loaded.adapters)
    seeds = _numbers(seed) if seed else list(loaded.seeds)
    _go(loaded, adapters, seeds, order, out, workers, dry_run)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="A study's name (tiny) or the path of its YAML file.")] = "tiny",
    out: Out = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; default: one per free processor.")
    ] = None,
    overrides: Overrides = None,
    page: Annotated[Path | None, typer.Option(help="The page; default: docs/results/<name>.md.")] = None,
    max_hours: Annotated[float, typer.Option(help="Refuse to start when the estimate is longer.")] = 2.0,
    render_only: Annotated[
        bool, typer.Option(help="Start no run; write the page from those that are finished.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the cost and the runs, and write nothing.")] = False,
) -> None:
    """Do the runs of a study that are not finished, one factor varied at a time, then write its page."""
    from harness.study import plan_study

    planned = plan_study(name, overrides or [], out)
    if overrides and page is None and not dry_run:
        raise ConfigError(
            f"{planned.page} is the page of study {name} as it stands, and --set changes it; say where this one goes, for "
            f"example --page {out / 'study.md'}"
        )
    if not render_only:
        _study_runs(planned, workers, max_hours, dry_run)
    if not dry_run:
        from reports.study import build_study

        written = build_study(planned, page or planned.page)
        console.print(f"page: {written}", highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold some.")],
    out: Annotated[Path | None, typer.Option(help="Default: `report` in the first folder.")] = None,
    grader: Annotated[
        str, typer.Option(help="Show the scores that `harness regrade --grader` gave, where a task offers it.")
    ] = "",
) -> None:
    """Render report.html and report.md with figures and tables from run directories."""
    from reports.build import build_report

    console.print(f"report: {build_report(runs, out or runs[0] / 'report', grader)}")


@app.command()
def regrade(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold some.")],
    grader: Annotated[
        str, typer.Option(help="A metric that tasks offer beside their own, e.g. sdft; default: each task's own.")
    ] = "",
) -> None:
    """Grade stored answers anew without generating: with today's grader, or with another one that a task offers."""
    from harness.regrade import regrade_runs, regrade_table
    from reports.runs import find_runs

    console.print(regrade_table(regrade_runs([run.path for run in find_runs(runs)], grader)))


@app.command()
def evaluate(
    suite: Annotated[str, typer.Option(help="A suite's name or path; its tasks and decoding are used.")],
    checkpoints: Annotated[list[Path], typer.Option(help="Model folders, in the order of training.")],
    more: Annotated[list[Path] | None, typer.Argument(help="More checkpoints after the first.")] = None,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Evaluate checkpoints that were trained elsewhere on a suite's tasks and print the matrix."""
    from harness.foreign import evaluate_checkpoints, matrix_table

    loaded = _load(suite, overrides, include_path)
    for profile, scores in evaluate_checkpoints(loaded, [*checkpoints, *(more or [])], out).items():
        console.print(matrix_table(scores, profile))


@tasks_app.callback()
def tasks(context: typer.Context, include_path: Include = None) -> None:
    """List the tasks that a suite can name."""
    context.obj = include_path or []
    if context.invoked_subcommand is None:
        from harness.inspection import task_table

        console.print(task_table(context.obj))


@tasks_app.command()
def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A task's name, or the path of its YAML file.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of local records, as under a suite's `data`.")
    ] = None,
    include_path: Include = None,
) -> None:
    """Show one training and one evaluation prompt of a task, grade its reference, and name its traps."""
    from harness.inspection import check_task

    passed = check_task(console, name, [*context.obj, *(include_path or [])], data or [])
    raise typer.Exit(0 if passed else 1)


@adapters_app.callback()
def adapters(context: typer.Context) -> None:
    """List the registered adapters with what they need of a teacher, their options and defaults."""
    if context.invoked_subcommand is None:
        from adapters.conformance.terminal import adapter_table

        console.print(adapter_table())


@adapters_app.command("check")
def check_adapter(
    name: Annotated[str, typer.Argument(help="A registered adapter; a wrapper wraps opd unless `of` is given.")],
    options: Annotated[list[str] | None, typer.Option("--option", help="KEY=VALUE, e.g. top_k=16.")] = None,
) -> None:
    """Run the conformance suite on an adapter: gradients, directions, masks, resumption, refusals."""
    from adapters.conformance.terminal import print_check

    raise typer.Exit(0 if print_check(console, name, options or []) else 1)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--seed {text}: found {text!r}, expected whole numbers with commas, for example 0,1,2"
        ) from error


def _load(suite: str, overrides: list[str] | None, include: list[Path] | None) -> Suite:
    from harness.suites import load_suite

    return load_suite(suite, overrides or [], include or [])


def _go(
    suite: Suite, adapters: list[str], seeds: list[int], order: str, out: Path, workers: int | None, dry_run: bool
) -> None:
    """Check, then print the plan or do the runs with progress, the retention table and the report at the end."""
    from harness.adapter import check_adapters
    from harness.pipeline import is_finished
    from harness.progress import Display
    from harness.sweep import default_workers, plan
    from harness.sweep import sweep as do_runs

    if unknown := sorted(set(adapters) - set(suite.adapters)):
        raise ConfigError(f"suite {suite.name} has no adapter {', '.join(unknown)}; it has {', '.join(suite.adapters)}")
    check_adapters(suite, adapters)
    try:
        specs = plan(suite, list(dict.fromkeys(adapters)), list(dict.fromkeys(seeds)), order, out)
        _ = specs[0].stages
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if dry_run:
        from harness.inspection import print_plan

        print_plan(console, specs)
        return
    todo = [spec for spec in specs if not is_finished(spec)]
    if todo:
        with Display(console) as display:
            do_runs(todo, workers or default_workers(todo), display, lambda _: _render_meanwhile(specs))
    else:
        console.print(f"all {len(specs)} runs are finished; nothing to do")
    _summarise(specs)


def _study_runs(planned: Plan, workers: int | None, max_hours: float, dry_run: bool) -> None:
    """Print what a study will cost, then do the runs that are left; the page needs all of them, so it comes after."""
    from harness.adapter import check_adapters
    from harness.progress import Display
    from harness.sweep import default_workers
    from harness.sweep import sweep as do_runs

    todo = planned.todo
    workers = workers or default_workers(todo or planned.specs)
    for suite in {spec.suite.name: spec.suite for spec in planned.specs}.values():
        check_adapters(suite, {spec.entry for spec in planned.specs if spec.suite.name == suite.name})
    console.print(planned.cost(workers), highlight=False, soft_wrap=True)
    if dry_run:
        console.print("\n".join(str(spec.path) for spec in todo), highlight=False, soft_wrap=True)
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
            do_runs(
                todo,
                workers,
                display,
                lambda spec: console.print(f"run {next(finished)} of {len(todo)}: {spec.path}", highlight=False),
            )


def _render_meanwhile(specs: Sequence[RunSpec]) -> None:
    """Render while other runs go on; what keeps the report from being made must not stop them."""
    try:
        _render(specs)
    except HarnessError as error:
        console.print(f"[yellow]no report yet:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def _render(specs: Sequence[RunSpec]) -> Path:
    """Render the report over all runs of the suite in this output folder, other commands' included."""
    from reports.build import build_report

    folder = specs[0].out / specs[0].suite.name
    return build_report([folder], folder / "report")


def _summarise(specs: Sequence[RunSpec]) -> None:
    from reports.frames import load
    from reports.terminal import print_retention

    print_retention(console, load([spec.path for spec in specs]))
    console.print(f"report: {_render(specs)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
