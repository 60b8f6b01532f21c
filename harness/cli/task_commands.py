"""The commands about tasks: list them, check one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from harness.cli.options import Include

tasks = typer.Typer(add_completion=False, help="List the tasks, or check one.")


@tasks.callback(invoke_without_command=True)
def list_tasks(context: typer.Context, include_path: Include = None) -> None:
    """List the tasks that a suite can name."""
    context.obj = include_path or []
    if context.invoked_subcommand is None:
        from harness.pipeline.task_check import task_table

        Console().print(task_table(context.obj))


@tasks.command()
def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A task's name, or the path of its YAML file.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of local records, as under a suite's `data`.")
    ] = None,
    include_path: Include = None,
) -> None:
    """Show one training and one evaluation prompt of a task, grade its reference, and name its traps."""
    from harness.pipeline.task_check import check_task

    passed = check_task(Console(), name, [*context.obj, *(include_path or [])], data or [])
    raise typer.Exit(0 if passed else 1)
