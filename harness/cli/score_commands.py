"""The commands that score without training: `evaluate` checkpoints from elsewhere, `regrade` stored answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Include, Overrides, Runs, read_suite
from harness.terminal.console import SafeConsole, announce, waiting


def evaluate(
    suite: Annotated[str, typer.Option(help="A suite's name or path, for its tasks and decoding.")],
    checkpoints: Annotated[list[Path], typer.Option(help="Model folders, in the order of training.")],
    more: Annotated[
        list[Path] | None, typer.Argument(help="Further model folders, after the one of --checkpoints.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The matrix goes to <out>/<suite>/checkpoints.")] = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Evaluate checkpoints that were trained elsewhere on a suite's tasks, and print the score matrix."""
    announce(f"reading suite {suite}")
    loaded = read_suite(suite, overrides, include_path, None)

    console = SafeConsole()
    with waiting("evaluating"):
        from harness.pipeline.checkpoint_matrix import evaluate_checkpoints, matrix_table

        matrices = evaluate_checkpoints(loaded, [*checkpoints, *(more or [])], out)
    for profile, scores in matrices.items():
        console.print(matrix_table(scores, profile))


def regrade(
    runs: Runs,
    grader: Annotated[
        str, typer.Option(help="Another metric that tasks offer, e.g. sdft; default: each task's own.")
    ] = "",
    include_path: Include = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow task files of folders that the runs name to be executed.")
    ] = False,
) -> None:
    """Grade stored answers again, without generating: with the present grader, or another one that a task offers."""
    from harness.rundir.reader import find_runs

    announce("reading runs and tasks")
    found = find_runs(runs)

    from rich.progress import Progress

    from harness.evaluation.regrading import regrade_runs, regrade_table

    with Progress(console=SafeConsole(stderr=True), transient=True) as shown:
        bar = shown.add_task("grading", total=None)

        def progress(done: int, total: int) -> None:
            shown.update(bar, completed=done, total=total)

        rows = regrade_runs([run.path for run in found], grader, include_path or [], trust, progress)
    SafeConsole().print(regrade_table(rows))
