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
    """A console that writes control characters in names, prompts and answers out, so that a file cannot send codes.

    What a program prints may hold text of others: a manifest's names, a task's prompts, a model's answers.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield what is printed, with every text that is not rich's own code made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=show_hidden(segment.text))

    def say(self, text: Any) -> None:
        """Print one line as it is: no markup, no colours, no line breaks at the terminal's edge."""
        self.print(str(text), markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextmanager
def waiting(doing: str) -> Generator[None]:
    """Show on a terminal that something goes on, for as long as the block takes; stdout, which may be piped, stays as it is.

    The block prints nothing to a terminal: two writers would overwrite each other's lines.
    """
    console = SafeConsole(stderr=True)
    if console.is_terminal:
        with console.status(escape(f"{doing} ..."), refresh_per_second=2):
            yield
    else:
        yield


def announce(doing: str) -> None:
    """Print one line on a terminal, before imports that take seconds; stdout, which may be piped, stays as it is."""
    console = SafeConsole(stderr=True)
    if console.is_terminal:
        console.print(f"{doing} ...", style="dim", markup=False, highlight=False)
