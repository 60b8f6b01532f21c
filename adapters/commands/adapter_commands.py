"""The commands about adapters: list them, show one, document them, check one."""

from __future__ import annotations

from textwrap import fill
from typing import Annotated

import typer

from harness.terminal.console import SafeConsole

adapters = typer.Typer(add_completion=False, help="List the adapters, show one, or check one.")


@adapters.callback(invoke_without_command=True)
def list_adapters(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/adapters.md.")] = False,
) -> None:
    """List the registered adapters with what they need from a teacher, their options and defaults."""
    if context.invoked_subcommand is not None:
        return
    from adapters.commands.adapter_list import adapter_page, adapter_table

    if markdown:
        typer.echo(adapter_page(), nl=False)
    else:
        SafeConsole().print(adapter_table())


@adapters.command()
def show(name: Annotated[str, typer.Argument(help="A registered adapter.")]) -> None:
    """Show one adapter: its loss, its source, what it needs, and each option with default and meaning."""
    from adapters.commands.adapter_list import describe_adapter

    console = SafeConsole()
    for line in describe_adapter(name).splitlines():
        text = line.lstrip()
        indent = line.removesuffix(text)  # also of the lines that a narrow terminal breaks it into
        console.say(fill(text, console.width, initial_indent=indent, subsequent_indent=indent))


@adapters.command()
def check(
    name: Annotated[str, typer.Argument(help="A registered adapter; a wrapper wraps opd unless `of` is given.")],
    options: Annotated[list[str] | None, typer.Option("--option", help="KEY=VALUE, e.g. top_k=16.")] = None,
) -> None:
    """Run the conformance suite on an adapter: gradients, directions, masks, resumption, refusals."""
    from adapters.commands.adapter_check import print_check

    raise typer.Exit(0 if print_check(SafeConsole(), name, options or []) else 1)
