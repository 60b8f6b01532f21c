"""All figures of a report, drawn as its page draws them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from matplotlib.figure import Figure

from reports.data.frames import Frames
from reports.document.blocks import Block, Folded, Picture
from reports.figures import style
from reports.report.report_data import ReportData
from reports.report.sections import make_sections


def drawn(frames: Frames) -> dict[str, Figure]:
    """Draw every figure of a report as the page does."""
    with style.shared({label: run.adapter for run, label in frames.labelled}):
        return {p.name: p.draw() for part in make_sections(ReportData(frames)) for p in pictures(part.blocks)}


def pictures(blocks: Iterable[Block]) -> Iterator[Picture]:
    for block in blocks:
        if isinstance(block, Folded):
            yield from pictures(block.blocks)
        elif isinstance(block, Picture):
            yield block
