"""A report's page parsed by the standard library: its tables, sentences and descriptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

HEADINGS = {"h2", "h3"}
CELLS = {"th", "td"}
TEXTS = {"p", "li", "caption", "figcaption", "summary", *HEADINGS, *CELLS}


@dataclass
class Table:
    """A table's caption, header and rows of texts, with the h2 and h3 above it."""

    section: str
    heading: str
    caption: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class ParsedPage(HTMLParser):
    """All tables; all sentences outside tables as (kind, text), kind the element's class or name; descriptions of figures."""

    tables: list[Table] = field(default_factory=list)
    sentences: list[tuple[str, str]] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, str, list[str]]] = []
        self._under = {"h2": "", "h3": ""}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a table, a row or a text."""
        named = dict(attrs)
        if tag == "table":
            self.tables.append(Table(self._under["h2"], self._under["h3"]))
        if tag == "tr" and self.tables:
            self.tables[-1].rows.append([])
        if tag == "svg":
            self.descriptions.append(named.get("aria-label") or "")
        if tag in TEXTS:
            self._open.append((tag, named.get("class") or tag, []))

    def handle_data(self, data: str) -> None:
        """Collect the characters of a text."""
        if self._open:
            self._open[-1][2].append(data)

    def handle_endtag(self, tag: str) -> None:
        """Store a finished text as heading, caption, cell or sentence."""
        if not self._open or self._open[-1][0] != tag:
            return
        _, kind, parts = self._open.pop()
        text = "".join(parts).strip()
        if tag in HEADINGS:
            self._under |= {"h2": text, "h3": ""} if tag == "h2" else {"h3": text}
        if tag == "caption":
            self.tables[-1].caption = text
        elif tag in CELLS:
            self.tables[-1].rows[-1].append(text)
        elif text:
            self.sentences.append((kind, text))


def parse(page: Path) -> ParsedPage:
    """Return a page's parts; a table's first row is its header."""
    parsed = ParsedPage()
    parsed.feed(page.read_text(encoding="utf-8"))
    for table in parsed.tables:
        table.header, *table.rows = table.rows
    return parsed
