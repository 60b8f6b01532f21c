"""A report's page as data: sections, and the blocks that HTML and Markdown both render."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph; `role` sets its style: `plain`, `note`, `measured`, `warning`, or `missing` for what cannot be shown."""

    kind: ClassVar[str] = "text"
    text: str
    role: str = "plain"


@dataclass(frozen=True)
class Grid:
    """A table of strings; the first column names the rows, and `strong` holds the (row, column) of bold cells."""

    kind: ClassVar[str] = "grid"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[tuple[int, int]] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Picture:
    """A figure: file name, title, caption, and the function that draws it.

    `draw` raises RunError where there is nothing to draw; the page then says why, or leaves out a figure that is `optional`.
    `alt` describes the figure for readers who cannot see it. `narrow` draws it for a phone, with stacked panels.
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
    """Preformatted text."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Link:
    """A link to another file of the report; `target` is its path relative to the page."""

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
    """Blocks that are hidden until a reader opens the title, unless `opened`."""

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
