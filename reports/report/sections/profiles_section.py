"""Further evaluation profiles, each with its own matrix, and several answers of each item."""

from __future__ import annotations

from reports.data.frames import Frames
from reports.document import grids
from reports.document.blocks import Block, Folded, Heading, Section, Text
from reports.report.report_data import ReportData

SEVERAL = (
    "mean@n and unbiased pass@k from the same n answers, at the start → after the last stage, mean over the seeds that have "
    "both."
)
OTHER = "The same checkpoints and items, answered with the settings of this profile."


def make_section(report_data: ReportData) -> Section | None:
    """Return the section; None where the runs have one profile and one answer per item."""
    frames = report_data.frames
    blocks = [*_several(frames)]
    for number, name in enumerate(frames.profiles, start=1):
        under = frames.under(name)
        blocks += [Heading(f"profile-{number}", f"Evaluation profile {name}"), Text(OTHER, "note")]
        blocks += [*grids.retention_grids(under.scores), *_several(under)]
        blocks += [Folded(f"Figures under the profile {name}", [grids.figures_grid(under.scores)])]
    return Section("profiles", "Profiles", "Several answers and further profiles", blocks) if blocks else None


def _several(frames: Frames) -> list[Block]:
    grid = grids.several_answers_grid(frames)
    return [Text(SEVERAL, "note"), grid] if grid.rows else []
