"""Load the page's templates with their filters, and move finished files to their place."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from harness.terminal.sanitize import show_hidden


def load_templates() -> Environment:
    """Return the templates with the filters `md`, `indented` and `formula`; an undefined variable is an error.

    Every text that a template writes goes through `show_hidden`, and is escaped in HTML.
    """
    templates = Environment(
        loader=PackageLoader("reports.document"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    templates.filters |= {"md": escape_markdown, "indented": _indented, "formula": _formula}
    return templates


def publish(scratch: Path, out: Path) -> None:
    """Move every file from `scratch` to the same path below `out`, pages last, so that no page names a missing file."""
    files = (path for path in scratch.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: (path.parent == scratch, path.suffix == ".html", path.suffix == ".md")):
        target = out / file.relative_to(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def escape_markdown(text: object) -> str:
    """Escape Markdown and HTML markup and join lines, so that a table cell stays one cell."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*|~]|\](?=\())", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;"))


def _shown(value: Any) -> Any:
    """Make hidden characters of a text visible; `Markup`, which the templates make themselves, stays as it is."""
    return show_hidden(value) if type(value) is str else value


def _formula(text: str) -> Markup:
    """Return a formula with its `_j` and `_{...}` set as subscripts."""
    return Markup(re.sub(r"_(?:\{([^}]*)\}|(\w))", r"<sub>\1\2</sub>", str(escape(show_hidden(text)))))


def _indented(text: str) -> str:
    """Return a Markdown code block by indentation, which no content can close."""
    return "\n".join(f"    {line}" for line in text.splitlines())
