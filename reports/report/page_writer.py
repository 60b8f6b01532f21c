"""Write a page of sections as HTML and Markdown, with its figures; reports and studies both use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.errors import RunError
from reports.document.blocks import Block, Folded, Picture, Section
from reports.document.rendering import load_templates
from reports.figures import style


@dataclass(frozen=True)
class Page:
    """A page: title, opening sentences, what is missing, and sections.

    The first sentence of each text of `lead` is set in large type, `opening` is a list below, and `missing` names what the
    numbers do not cover.
    """

    title: str
    lead: Sequence[str]
    opening: Sequence[str]
    missing: Sequence[str]
    sections: Sequence[Section]


def write_page(page: Page, folder: Path, stem: str, figures: str, *, dpi: int = 150) -> None:
    """Write `stem`.html and `stem`.md into `folder`, and the figures into its subfolder `figures`.

    An optional figure with nothing to draw is left out; for any other, the page says why it is missing.
    """
    (folder / figures).mkdir(exist_ok=True)
    drawn = dict(_draw(page.sections, folder / figures, dpi))
    context = {"page": page, "drawn": drawn, "figures": figures, "colours": style.page_colours()}
    templates = load_templates()
    for suffix in ("md", "html"):
        text = templates.get_template(f"report.{suffix}.j2").render(context)
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")


def flatten(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield blocks and, after each folded one, the blocks inside it."""
    for block in blocks:
        yield block
        yield from flatten(block.blocks) if isinstance(block, Folded) else ()


def _draw(sections: Iterable[Section], folder: Path, dpi: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Save each figure and yield its name with its `<svg>`, or with the reason why there is nothing to draw."""
    for picture in (block for section in sections for block in flatten(section.blocks) if isinstance(block, Picture)):
        try:
            figure = picture.draw()
        except RunError as error:
            yield picture.name, {"svg": None, "narrow": None, "reason": None if picture.optional else str(error)}
            continue
        style.save_figure(figure, folder / picture.name, dpi)
        words = picture.alt or picture.title
        svg = style.inline_svg(folder / f"{picture.name}.svg", words)
        narrow = Markup(style.phone_svg(picture.narrow, picture.name, words)) if picture.narrow else None
        yield picture.name, {"svg": Markup(svg), "narrow": narrow, "reason": None}
