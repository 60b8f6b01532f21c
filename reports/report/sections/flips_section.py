"""Flips: items lost and gained over each stage, which show changes that a difference of means hides."""

from __future__ import annotations

import pandas as pd

from reports.data.flips import ADJUSTED, STAGE
from reports.document.blocks import Folded, Grid, Picture, Section, Text
from reports.figures.draw_flips import draw_flips
from reports.formatting import format_interval, format_percent
from reports.report.report_data import ReportData

CAPTION = (
    "Each cell shows the items lost over the stage (−: right before it, not right after it) and gained (+: the reverse), in % "
    "of the task's items, mean over seeds. A small net change can hide many of both."
)
SOURCE = (
    "Items are those of the stored answers; where an item has several answers, it is right if all of them are "
    "(arXiv 2510.17776)."
)
NAMES = {
    "forgotten": "forgotten 1→0, %",
    "adjusted_forgotten": "chance-adjusted",
    "gained": "gained 0→1, %",
    "adjusted_gained": "chance-adjusted",
}
BY_ITEM = (
    "Forgotten: items right after the task's own stage (at the start, where no stage trains the task) and not right at the "
    "end. Gained: the reverse."
)
BY_CHANCE = (
    " Chance-adjusted: less the share (1 − a)(1 − b) / (k − 1) of items, the least that guessing among k choices changes in "
    "each direction at accuracies a and b (arXiv 2510.17776). In free text a guess is never right, so nothing is subtracted."
)


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    title = "Flips: items lost and gained over each stage"
    scores, shares = report_data.frames.scores, report_data.flip_shares
    own = scores.loc[scores["own"], ["label", "task", "stage"]].drop_duplicates()
    alt = "Share of items lost and gained by stage and task, one panel per method; the tables below hold its numbers."
    picture = Picture("flips", title, CAPTION, lambda: draw_flips(shares, own), alt)
    by_item = by_item_grid(report_data.by_item)
    reading = BY_ITEM + BY_CHANCE * (NAMES["adjusted_gained"] in by_item.header)
    adjusted = [Folded(by_item.title, [by_item, Text(reading, "note")])] if by_item.rows else []
    tables = [Folded("The same as tables", [*flip_grids(shares), Text(SOURCE, "note")])] if len(shares) else []
    return Section("flips", "Flips", title, [picture, *adjusted, *tables])


def by_item_grid(table: pd.DataFrame) -> Grid:
    """Return forgetting and backward transfer by item; chance-adjusted too where a task has choices."""
    with_choices = len(table) > 0 and bool(table["choices"].notna().any())
    shown = [name for name in ADJUSTED if with_choices or not name.startswith("adjusted")]
    rows = [
        [str(row["label"]), str(row["task"]), *(format_interval(row[name]) for name in shown)]
        for row in table.to_dict("records")
    ]
    return Grid("Forgetting and backward transfer by item", ["method", "task", *(NAMES[name] for name in shown)], rows)


def flip_grids(shares: pd.DataFrame) -> list[Grid]:
    """Return one grid per label: a row per stage, a column per task, `−lost +gained` in % of items."""
    grids = []
    for label, cells in shares[shares["kind"] == STAGE].groupby("label", sort=False):
        tasks = list(cells["task"].unique())
        texts = {
            (c["after"], c["task"]): f"−{format_percent(c['lost'])} +{format_percent(c['gained'])}"
            for c in cells.to_dict("records")
        }
        stages = sorted(cells["after"].unique())
        rows = [[f"stage {stage}", *(texts.get((stage, task), "–") for task in tasks)] for stage in stages]
        grids.append(Grid(f"Flips, {label}, % of items", ["stage", *tasks], rows))
    return grids
