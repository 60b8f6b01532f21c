"""Every figure with its formula and source."""

from __future__ import annotations

from reports.document import grids
from reports.document.blocks import Section, Text
from reports.report.report_data import ReportData

NOTE = (
    "R[i][j] is the score on task j after stage i, R[0] is the start, stage j trains task j, T is the number of "
    "stages, J that of trained tasks (equal, but for stages that train several). Mean over seeds with 95 % t "
    "interval. Sums run over trained tasks. Differences are in percentage points; ↑ higher is better, ↓ lower is "
    "better. A dash means that the figure is not defined here, or that a cell it needs is missing."
)


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    return Section(
        "figures",
        "Formulas",
        "Figures and their formulas",
        [Text(NOTE, "note"), grids.figures_grid(report_data.frames.scores)],
    )
