"""Retention along learning: what each method kept at each level of learning, and the differences at equal learning."""

from __future__ import annotations

import math

import pandas as pd

from harness.stats.intervals import resolved
from harness.stats.learning.equal_learning import LEAST
from harness.stats.looks import FEWEST_SEEDS
from harness.stats.significance import p_value
from reports.document.blocks import Grid, Picture, Section, Text
from reports.figures.draw_curves import draw_curves
from reports.formatting import format_p, format_percent, format_with_bounds
from reports.report.report_data import ReportData

TITLE = "Retention along learning"
CAPTION = (
    "Right: learned more. Up: kept more of the other tasks (the first stage's task and those that no stage trains). Where one "
    "line is above another at the same learning, that method kept more at equal learning. Thick lines are means over seeds, "
    "thin lines single seeds; a ring marks the stage's start. Learning is the best monotone fit of the measured scores."
)
READING = (
    "The difference in how the other tasks changed since the stage began, averaged over the learning that both methods reach "
    "at a seed, then over seeds. It is positive where the first method kept more. Bold: the interval excludes zero. "
    "Brackets are 95 % intervals for another seed and other items (with one seed, for other items alone); p is the test that "
    "they invert, not corrected for several "
    "rows. The first stage begins at the same weights for both methods, a later stage at each method's own. Curves are scored "
    "on the first test items of each task, under the suite's first profile unless `evaluation.curve_profile` names another. "
    "Too few points: one method learned the whole "
    "common range between two points of its curve; a smaller evaluation.every helps."
)


def make_section(report_data: ReportData) -> Section | None:
    """Return the section; None where no run has a learning curve."""
    points = report_data.curves
    if points.empty:
        return None
    alt = "Change of the other tasks against the score of the stage's own task, one panel per stage, a line per method."
    picture = Picture("curves", TITLE, CAPTION, lambda: draw_curves(points), alt)
    table = report_data.equal_learning
    compared = [equal_learning_grid(table), Text(READING, "note")] if len(table) else []
    return Section("curves", "At equal learning", TITLE, [picture, *compared])


def equal_learning_grid(table: pd.DataFrame) -> Grid:
    """Return a row per pair of methods and stage: the common learning, and the difference in retention there."""
    rows = []
    for row in table.to_dict("records"):
        mean = ", ".join(filter(None, ["mean over stages", row["without"]]))
        stage = f"{row['stage']}: {row['task']}" if row["stage"] else mean
        common = "–" if math.isnan(row["low"]) else f"{format_percent(row['low'])} to {format_percent(row['high'])}"
        seeds = f"{row['seeds']} of {row['paired']}" if row["seeds"] < row["paired"] else str(row["paired"])
        rows.append(
            [
                f"{row['label']} − {row['against']}",
                stage,
                seeds,
                common,
                row["obstacle"] or format_with_bounds(row["difference"]),
                format_p(p_value(row["difference"])),
            ]
        )
    strong = frozenset(
        (place, 4) for place, row in enumerate(table.to_dict("records")) if resolved(row["difference"], FEWEST_SEEDS)
    )
    header = ["methods", "stage", "seeds", "learning compared, %", "kept at equal learning, points ↑", "p"]
    return Grid(f"Differences at equal learning (at least {100 * LEAST:g} points in common)", header, rows, strong)
