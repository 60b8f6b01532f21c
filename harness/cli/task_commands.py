"""The commands `tasks`, which lists and checks tasks, and `suites`, which lists suites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from harness.cli.options import Include
from harness.terminal.console import SafeConsole, announce
from harness.terminal.fitted_table import FittedTable
from harness.terminal.sanitize import show_hidden

tasks = typer.Typer(add_completion=False, help="List the tasks, or check one.")


@tasks.callback(invoke_without_command=True)
def list_tasks(context: typer.Context, include_path: Include = None) -> None:
    """List the tasks that a suite can name."""
    context.obj = include_path or []
    if context.invoked_subcommand is None:
        SafeConsole().print(task_table(context.obj))


@tasks.command()
def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A task's name, or the path of its YAML file.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of local records, as under a suite's `data`.")
    ] = None,
    include_path: Include = None,
) -> None:
    """Show a training and an evaluation prompt of a task, grade its reference, and name traps in its file."""
    announce(f"checking {name}")

    from harness.pipeline.task_check import check_task

    passed = check_task(SafeConsole(), name, [*context.obj, *(include_path or [])], data or [])
    raise typer.Exit(0 if passed else 1)


def suites(include_path: Include = None) -> None:
    """List the suites that a command can name."""
    SafeConsole().print(suite_table(include_path or []))


def task_table(include: Sequence[Path]) -> FittedTable:
    """Return a table of the shipped tasks and those in `include`, with primary metric and file."""
    from harness.lmeval.task_files import TASK_FOLDER, task_settings

    table = Table(title="tasks", title_justify="left")
    for column in ("name", "capability", "primary metric"):
        table.add_column(column, no_wrap=True)
    table.add_column("file", overflow="fold")
    for name, path, settings in task_settings([TASK_FOLDER, *include]):
        cells = (name, settings.get("capability", ""), settings.get("metric", ""), _short(path))
        table.add_row(*(Text(show_hidden(str(cell))) for cell in cells))
    return FittedTable(table, ["file", "primary metric"])


def suite_table(include: Sequence[Path]) -> FittedTable:
    """Return a table of the shipped suites and those in `include`, with description and file."""
    from harness.config.load import read_suite_files

    table = Table(title="suites", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    table.add_column("file", overflow="fold")
    for path, raw in read_suite_files(include):
        table.add_row(*(Text(show_hidden(str(cell))) for cell in (path.stem, raw.get("description", ""), _short(path))))
    return FittedTable(table, ["file"])


def _short(path: Path) -> str:
    """Return a path relative to the current folder where it is below it, else as it is."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
