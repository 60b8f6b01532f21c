"""The command line: find the commands, run one, and print an error as one sentence."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import entry_points, metadata, version
from io import TextIOWrapper
from typing import Annotated

import typer
from rich.markup import escape

from harness.cli.commands import GROUP as COMMANDS
from harness.cli.commands import Commands
from harness.cli.own_packages import OWN, PACKAGES, check_own_packages
from harness.cli.reporters import GROUP as REPORTERS
from harness.config.plugins import BASES
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
        typer.echo(f"harness {version(OWN)}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Read the options before the command."""


def main() -> None:
    """Run the command line.

    An error that a user can fix is printed as one sentence (exit code 2), any other one with the file of its traceback (1).
    """
    # Other progress bars would be drawn over ours; both variables are read when the libraries are first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):  # a terminal in an old encoding shows a question mark for what it lacks
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        check_own_packages()
        app()
    except (HarnessError, OSError) as error:
        _print_error(str(error))
        sys.exit(2)
    except Exception as error:
        _print_error(_unexpected(error))
        sys.exit(1)


def _print_error(sentence: str) -> None:
    line = escape(" ".join(sentence.split()))
    SafeConsole(stderr=True).print(f"[bold red]error:[/] {line}", highlight=False, emoji=False, soft_wrap=True)


def _unexpected(error: Exception) -> str:
    """Write the traceback of an unexpected error to a file, and return a sentence that says where to report it."""
    import tempfile
    import traceback

    descriptor, log = tempfile.mkstemp(prefix="harness-error-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    if place := _place_in_a_plugin(error):
        return f"{type(error).__name__}: {error} (raised in {place}; the traceback is in {log})"
    urls = (line.partition(", ") for line in metadata(OWN).get_all("Project-URL") or ())
    tracker = next((address for label, _, address in urls if label == "Issues"), "the project's issue tracker")
    return (
        f"{type(error).__name__}: {error} (unexpected, so probably a bug of the harness; the traceback is in {log}; please "
        f"report it at {tracker})"
    )


def _place_in_a_plugin(error: Exception) -> str:
    """Return file and line where another package that registers entry points of ours raised an error; else nothing."""
    import traceback

    owners = {
        point.module.partition(".")[0]: point.dist.name
        for group in (*BASES, COMMANDS, REPORTERS)
        for point in entry_points(group=group)
        if point.dist is not None and point.dist.name != OWN
    }
    # From where it was raised outwards: libraries are passed over, and whoever called them is at fault.
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in owners:
            return f"{frame.f_code.co_filename}, line {line}, of the package {owners[package]}"
        if package in PACKAGES:
            return ""
    return ""


if __name__ == "__main__":
    main()
