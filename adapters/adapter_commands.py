"""The commands about adapters: list them, check one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

adapters = typer.Typer(add_completion=False, help="List the adapters, or check one.")


@adapters.callback(invoke_without_command=True)
def list_adapters(context: typer.Context) -> None:
    """List the registered adapters with what they need of a teacher, their options and defaults."""
    if context.invoked_subcommand is None:
        from adapters.adapter_list import adapter_table

        Console().print(adapter_table())


@adapters.command()
def check(
    name: Annotated[str, typer.Argument(help="A registered adapter; a wrapper wraps opd unless `of` is given.")],
    options: Annotated[list[str] | None, typer.Option("--option", help="KEY=VALUE, e.g. top_k=16.")] = None,
) -> None:
    """Run the conformance suite on an adapter: gradients, directions, masks, resumption, refusals."""
    from adapters.conformance.terminal import print_check

    raise typer.Exit(0 if print_check(Console(), name, options or []) else 1)
