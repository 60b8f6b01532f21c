"""Forgetting by outcome: whether lost items end wrong, unparsed or truncated, and all outcomes at start and end."""

from __future__ import annotations

import pandas as pd

from reports.data.flips import HOW_LOST, SINCE_OWN
from reports.document import grids
from reports.document.blocks import Folded, Grid, Picture, Section, Text
from reports.figures.draw_flips import draw_outcomes
from reports.formatting import format_percent, format_points
from reports.report.report_data import ReportData

CAPTION = (
    "Items that were right after the task's own stage and are not right at the end, by the outcome of their answer at "
    "the end: wrong, unparsed (no answer could be read) or truncated (cut off at the length limit). Unparsed and "
    "truncated answers suggest that the model lost the answer's form rather than the skill."
)
ENDS = (
    "Share of answers at the start → after the last stage: correct, wrong, unparsed (no answer could be read), or truncated "
    "(cut off at the length limit). All seeds that have both are pooled."
)


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    title = "What forgetting is made of"
    shares = report_data.flip_shares
    alt = "Bars of items lost by outcome and of items gained, by task and method; the table below holds its numbers."
    picture = Picture("decomposition", title, CAPTION, lambda: draw_outcomes(shares), alt)
    grid = lost_grid(shares)
    ends = Folded(
        "Outcomes from the start to the end", [Text(ENDS, "note"), grids.outcomes_grid(report_data.frames.scores)]
    )
    return Section(
        "outcomes", "Outcomes", title, [picture, *([Folded("The same as a table", [grid])] * bool(grid.rows)), ends]
    )


def lost_grid(shares: pd.DataFrame) -> Grid:
    """Return per method and earlier task the items lost and gained since its own stage, and the outcomes of the lost ones."""
    rows = [
        [
            str(row["label"]),
            str(row["task"]),
            format_percent(row["lost"]),
            *(format_percent(row[f"lost_{how}"]) for how in HOW_LOST),
            format_percent(row["gained"]),
            format_points(row["gained"] - row["lost"]),
        ]
        for row in shares[shares["kind"] == SINCE_OWN].to_dict("records")
    ]
    header = ["method", "task", "lost %", *(f"now {how} %" for how in HOW_LOST), "gained %", "net, points"]
    return Grid("Items lost and gained between a task's own stage and the end, mean over seeds", header, rows)
