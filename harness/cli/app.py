"""The command line: finds the commands, runs one, and turns errors into one sentence."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
from rich.markup import escape

from harness.cli.commands import Commands
from harness.errors import HarnessError
from harness.terminal.console import SafeConsole

ABOUT = "Adapt a language model in stages, evaluate every task after each, and compare what methods gained and lost."
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=ABOUT,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"harness {version('continual-harness')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Take the options that stand before the command."""


def main() -> None:
    """Run the command line; an error that a user can fix is one sentence, not a traceback."""
    # Libraries' own bars would be drawn over ours; both settings are read when they are first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        app()
    except (HarnessError, OSError) as error:
        sentence = escape(" ".join(str(error).split()))
        SafeConsole(stderr=True).print(f"[bold red]error:[/] {sentence}", highlight=False, emoji=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
