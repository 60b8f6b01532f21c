"""All figures of a report, drawn as its page draws them; or left blank where a test reads only text."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from reports.data.frames import Frames
from reports.document.blocks import Block, Folded, Picture
from reports.figures import style
from reports.report.report_data import ReportData
from reports.report.sections import make_sections

BLANK = "<svg></svg>"


def drawn(frames: Frames) -> dict[str, Figure]:
    """Draw every figure of a report as the page does."""
    with style.shared(frames.labelled):
        return {p.name: p.draw() for part in make_sections(ReportData(frames)) for p in pictures(part.blocks)}


def pictures(blocks: Iterable[Block]) -> Iterator[Picture]:
    for block in blocks:
        if isinstance(block, Folded):
            yield from pictures(block.blocks)
        elif isinstance(block, Picture):
            yield block


@contextmanager
def blank_figures() -> Generator[None]:
    """Draw figures for wide screens alone, and save blank ones, in a quarter of the time: for tests of a page's text."""

    def save(_: Figure, stem: Path, dpi: int = 150) -> None:
        stem.with_suffix(".png").write_bytes(b"")
        stem.with_suffix(".svg").write_text(BLANK, encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save_figure", save)
        patch.setattr(style, "phone_svg", lambda *_: BLANK)
        yield
