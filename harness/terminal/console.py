"""The console of every command: only rich's own codes reach the terminal, never codes in the printed text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from harness.terminal.sanitize import show_hidden


class SafeConsole(Console):
    """A console that shows control characters in printed text by name, so that a file cannot send codes to the terminal.

    Printed text may come from others: names in a manifest, prompts of a task, answers of a model.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments to print, with control characters shown by name in all but rich's own control segments."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=show_hidden(segment.text))

    def say(self, text: Any, wrap: bool = False) -> None:
        """Print text as it is, without markup and colours; with `wrap`, broken between words at the terminal's edge."""
        self.print(str(text), markup=False, highlight=False, emoji=False, soft_wrap=not wrap)


@contextmanager
def waiting(doing: str) -> Generator[None]:
    """Show a spinner on stderr, if it is a terminal, while the block runs; stdout, which may be piped, gets nothing.

    The block must not print to the terminal: two writers would overwrite each other's lines.
    """
    console = SafeConsole(stderr=True)
    if console.is_terminal:
        with console.status(escape(f"{doing} ..."), refresh_per_second=2):
            yield
    else:
        yield


def announce(doing: str) -> None:
    """Print one line on stderr, if it is a terminal, before imports that take seconds."""
    console = SafeConsole(stderr=True)
    if console.is_terminal:
        console.print(f"{doing} ...", style="dim", markup=False, highlight=False)
