"""What a report's page is made of: sections, and the blocks that HTML and Markdown both render."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph; `role` is how it is set: `plain`, `note`, `measured`, `warning`, or `missing` for what cannot be shown."""

    kind: ClassVar[str] = "text"
    text: str
    role: str = "plain"


@dataclass(frozen=True)
class Grid:
    """A table of strings, its first column naming the rows; `strong` holds the (row, column) of cells that stand out."""

    kind: ClassVar[str] = "grid"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[tuple[int, int]] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Picture:
    """A figure: file name, title, caption on how to read it, and how it is drawn.

    `draw` raises RunError where there is nothing to draw; the page then says why, or leaves an `optional` one out. `alt` says
    in words what the figure shows, for readers who cannot see it. `narrow` draws it for a phone, where panels are stacked.
    """

    kind: ClassVar[str] = "picture"
    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]
    alt: str = ""
    optional: bool = False
    narrow: Callable[[], Figure] | None = None


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    sentences: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text kept as it is, line by line."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Link:
    """A sentence that leads to another file of the report, by its path from the page."""

    kind: ClassVar[str] = "link"
    target: str
    text: str


@dataclass(frozen=True)
class Answers:
    """One item's answers before and after, side by side, its prompt above them."""

    kind: ClassVar[str] = "answers"
    title: str
    prompt: str
    target: str
    before: str
    after: str
    before_title: str
    after_title: str


@dataclass(frozen=True)
class Folded:
    """Blocks behind a title that opens them."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Block]
    opened: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, with an anchor."""

    kind: ClassVar[str] = "heading"
    name: str
    text: str


Block = Text | Grid | Picture | Bullets | Code | Link | Answers | Folded | Heading


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its name in the contents, its title, and its blocks."""

    name: str
    short: str
    title: str
    blocks: Sequence[Block]
