"""The command line: thin commands over the pipeline, the sweep and the reports."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from harness.cli.commands import do_compare, do_runs, do_study, read_claim_files, report_claims, whole_numbers
from harness.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from harness.config.suite import Suite

ABOUT = "Adapt a language model in stages, evaluate every task after each, and compare what methods gained and lost."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=ABOUT)
tasks_app = typer.Typer(invoke_without_command=True, help="List the tasks, or check one.")
app.add_typer(tasks_app, name="tasks")
adapters_app = typer.Typer(invoke_without_command=True, help="List the adapters, or check one.")
app.add_typer(adapters_app, name="adapters")
console = Console()

SuiteName = Annotated[str, typer.Argument(help="A suite's name (tiny) or the path of its YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. training.optimizer.lr=1e-4.")]
Include = Annotated[list[Path] | None, typer.Option("--include-path", help="A folder with more tasks and suites.")]
Order = Annotated[str, typer.Option(help="One of the suite's orders; `joint` trains all tasks in one stage.")]
Out = Annotated[Path, typer.Option(help="Where run directories go.")]
Track = Annotated[
    str | None, typer.Option(help="Trackers that get a copy of the figures: tensorboard, wandb, trackio, mlflow.")
]
Claims = Annotated[
    list[str] | None, typer.Option(help="A file of claims to judge on these runs, or a shipped one's name (aopd).")
]
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
    order: Order = "default",
    out: Out = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
    track: Track = None,
    dry_run: Annotated[bool, typer.Option(help="Print what would be done and write nothing.")] = False,
) -> None:
    """Adapt a student stage by stage with one adapter and one seed, evaluating after each stage."""
    loaded = _load(suite, [*(overrides or []), *_trackers(track)], include_path)
    do_runs(
        console,
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
    order: Order = "default",
    out: Out = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; default: one per free processor.")
    ] = None,
    overrides: Overrides = None,
    include_path: Include = None,
    track: Track = None,
    dry_run: Annotated[bool, typer.Option(help="Print what would be done and write nothing.")] = False,
) -> None:
    """Do the runs of several adapters and seeds, then report on them."""
    loaded = _load(suite, [*(overrides or []), *_trackers(track)], include_path)
    adapters = adapter.split(",") if adapter else list(loaded.adapters)
    seeds = whole_numbers("--seed", seed) if seed else list(loaded.seeds)
    do_runs(console, loaded, adapters, seeds, order, out, workers, dry_run)


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
    from harness.pipeline.study import plan_study

    planned = plan_study(name, overrides or [], out)
    if overrides and page is None and not dry_run:
        raise ConfigError(
            f"{planned.page} is the page of study {name} as it stands, and --set changes it; say where this one goes, for "
            f"example --page {out / 'study.md'}"
        )
    if not render_only:
        do_study(console, planned, workers, max_hours, dry_run)
    if not dry_run:
        from reports.study.study_page import build_study

        written = build_study(planned, page or planned.page)
        console.print(f"page: {written}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold some.")],
    out: Annotated[Path | None, typer.Option(help="Default: `report` in the first folder.")] = None,
    grader: Annotated[
        str, typer.Option(help="Show the scores that `harness regrade --grader` gave, where a task offers it.")
    ] = "",
    claims: Claims = None,
) -> None:
    """Render report.html and report.md with figures and tables from run directories."""
    from reports.report.build import build_report

    folder = out or runs[0] / "report"
    files = read_claim_files(claims or [])
    page = build_report(runs, folder, grader, files)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    report_claims(console, files, runs, folder, grader)


@app.command()
def compare(
    methods: Annotated[
        list[Path], typer.Argument(help="Methods' folders (runs/tiny/opd) or single runs, the baseline first.")
    ],
    out: Annotated[Path | None, typer.Option(help="Also write Markdown, LaTeX and CSV into this folder.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Print markdown, csv or latex in place of the tables.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="The last stage that counts, e.g. 2; or two, e.g. 1,4, to compare a run with itself."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Comma-separated; show these tasks alone.")] = None,
    order: Annotated[str | None, typer.Option(help="The order of the stages, where a folder holds several.")] = None,
    profile: Annotated[str, typer.Option(help="An evaluation profile; default: the suite's first.")] = "",
    grader: Annotated[str, typer.Option(help="Scores that `harness regrade --grader` gave.")] = "",
    margin: Annotated[
        float, typer.Option(min=0, help="Points within which learning counts as matched, so that forgetting is judged.")
    ] = 5.0,
    shared_items: Annotated[
        bool, typer.Option(help="Where evaluations hold other items, compare those that both have.")
    ] = False,
    claims: Claims = None,
) -> None:
    """Compare methods by paired differences: learned, forgotten, entropy, final scores, with what the sample could show."""
    shown = {"order": order, "profile": profile, "grader": grader}
    do_compare(console, methods, out, format_, stage, task, shown, margin / 100, shared_items, claims or [])


@app.command()
def watch(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold some.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option(help="Look once and leave.")] = False,
) -> None:
    """Follow runs from another terminal: stage, step, time left, entropy and reward, until all are finished."""
    from reports.terminal.watch import watch as follow

    follow(console, runs, every, once)


@app.command()
def regrade(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold some.")],
    grader: Annotated[
        str, typer.Option(help="A metric that tasks offer beside their own, e.g. sdft; default: each task's own.")
    ] = "",
) -> None:
    """Grade stored answers anew without generating: with today's grader, or with another one that a task offers."""
    from harness.evaluation.regrading import regrade_runs, regrade_table
    from harness.rundir.reader import find_runs

    console.print(regrade_table(regrade_runs([run.path for run in find_runs(runs)], grader)))


@app.command()
def evaluate(
    suite: Annotated[str, typer.Option(help="A suite's name or path; its tasks and decoding are used.")],
    checkpoints: Annotated[list[Path], typer.Option(help="Model folders, in the order of training.")],
    more: Annotated[list[Path] | None, typer.Argument(help="More checkpoints after the first.")] = None,
    out: Annotated[Path, typer.Option(help="The matrix goes to <out>/<suite>/checkpoints.")] = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Evaluate checkpoints that were trained elsewhere on a suite's tasks and print the matrix."""
    from harness.pipeline.checkpoint_matrix import evaluate_checkpoints, matrix_table

    loaded = _load(suite, overrides, include_path)
    for profile, scores in evaluate_checkpoints(loaded, [*checkpoints, *(more or [])], out).items():
        console.print(matrix_table(scores, profile))


@tasks_app.callback()
def tasks(context: typer.Context, include_path: Include = None) -> None:
    """List the tasks that a suite can name."""
    context.obj = include_path or []
    if context.invoked_subcommand is None:
        from harness.pipeline.plan import task_table

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
    from harness.pipeline.plan import check_task

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


def _trackers(names: str | None) -> list[str]:
    return [f"trackers=[{names}]"] if names else []


def _load(suite: str, overrides: list[str] | None, include: list[Path] | None) -> Suite:
    from harness.config.load import load_suite

    return load_suite(suite, overrides or [], include or [])


if __name__ == "__main__":
    main()
