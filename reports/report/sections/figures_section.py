"""Every figure with its formula and source."""

from __future__ import annotations

from reports.document import grids
from reports.document.blocks import Section, Text
from reports.report.report_data import ReportData

NOTE = (
    "R[i][j] is the score on task j after stage i, R[0] is the start, stage j trains task j, T is the number of stages and J "
    "the number of trained tasks (J > T where a stage trains several). Sums are over trained tasks; those over tasks "
    "that the method trains itself leave out stages with an adapter of their own, and name their tasks. Values are means over "
    "seeds with 95 % t interval; differences are in percentage points; ↑ higher is better, ↓ lower is better. A dash: the "
    "figure is not defined for these runs, or a score that it needs is missing."
)


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    return Section(
        "figures",
        "Formulas",
        "Figures and their formulas",
        [Text(NOTE, "note"), grids.figures_grid(report_data.frames.scores)],
    )
