"""Draw scores: the retention matrix, each task through the stages (forgetting), and each task at its own stage (learning).

Bands and ranges run from the lowest to the highest seed; intervals are in the tables. More than `style.MANY` labels get a row
each, so that no legend is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import RunError
from reports.data.cells import role_in_all
from reports.data.tables import retention_table
from reports.figures import style
from reports.figures.curves import (
    Looks,
    legend_above,
    line_with_band,
    looks_of,
    outer_labels,
    panels,
)
from reports.formatting import shorten_names

NARROWEST = 7.6  # inches: the narrowest figure whose title fits
CellLink = Callable[[str, str, int], str | None]  # the address of the answers for a label, a task and a stage
ROLES = {"trained before": " (trained before the start)", "probe": " (probe, never trained)"}
SIDES = 2.5  # inches for the names of stages and the colour scale


@style.styled()
def draw_retention(scores: pd.DataFrame, link: CellLink | None = None, *, narrow: bool = False) -> Figure:
    """Return one stage-by-task panel per label; cells hold the mean score in % and, with several seeds, their range.

    The cell of the task that a stage trains is framed; probes are to the right of a line. `link` gives the address that a cell
    of the SVG leads to, relative to the page. `narrow` stacks the panels for a phone.
    """
    table = retention_table(scores)
    labels, widest = list(table["label"].unique()), int(table.groupby("label")["task"].nunique().max())
    columns = 1 if narrow else min(len(labels), max(1, int((14 - SIDES) / (0.7 * widest + 0.3))))
    rows = -(-len(labels) // columns)
    width = style.PHONE if narrow else max(NARROWEST, columns * (0.7 * widest + 0.3) + SIDES)
    figure = Figure(figsize=(width, rows * (0.5 * (table["stage"].max() + 1) + 0.4) + 1.6), layout="constrained")
    shown = panels(figure, len(labels), columns)
    for axes, label in zip(shown, labels, strict=True):
        _heatmap_panel(axes, table[table["label"] == label], link)
    if _alike(table):
        outer_labels(shown, columns)
    if not narrow:
        style.colour_bar(figure, shown, "score (%)")
    spread = "; small: lowest to highest seed" if table["seeds"].max() > 1 else ""
    title = f"Score after each stage (%); framed: the stage's own task{spread}"
    figure.suptitle(fill(title, 46) if narrow else title, x=0.005, ha="left", fontsize=11 if narrow else 12)
    return figure


def _alike(table: pd.DataFrame) -> bool:
    """Whether all labels have the same stages and tasks, in the same order."""
    columns = ["stage", "stage_task", "task"]
    return len({tuple(cells[columns].itertuples(index=False)) for _, cells in table.groupby("label")}) == 1


def _heatmap_panel(axes: Axes, cells: pd.DataFrame, link: CellLink | None) -> None:
    """Draw one label's matrix with the start on top; the cell in column c and row r has its centre at (c, r)."""
    tasks, stages = list(cells["task"].unique()), cells.drop_duplicates("stage")
    names, roles = shorten_names(tasks), list(cells.drop_duplicates("task")["role"])
    grid = 100 * cells.pivot(index="stage", columns="task", values="mean")[tasks].to_numpy(dtype=float)
    edges = [np.arange(size + 1) - 0.5 for size in reversed(grid.shape)]
    axes.pcolormesh(*edges, np.ma.masked_invalid(grid), cmap=style.HEAT, vmin=0, vmax=100)
    axes.invert_yaxis()
    for cell in cells.to_dict("records"):
        _annotate(axes, tasks.index(cell["task"]), cell)
        address = link(str(cell["label"]), str(cell["task"]), int(cell["stage"])) if link else None
        if address and cell["seeds"]:
            axes.add_patch(style.linked_cell(tasks.index(cell["task"]), cell["stage"], address))
    if probes := roles.count("probe"):
        axes.axvline(len(tasks) - probes - 0.5, color=style.INK, linewidth=2)
    rows = [fill(f"after {names.get(task, task)}" if task else "start", 18) for task in stages["stage_task"]]
    axes.set_yticks(stages["stage"], rows)
    marks = ["" if role == "trained" else f" ({role})" for role in roles]
    columns = [fill(f"{names[task]}{mark}", 19) for task, mark in zip(tasks, marks, strict=True)]
    axes.set_xticks(range(len(tasks)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=_with_seeds(cells), xlabel="task evaluated", ylabel="stage")


def _annotate(axes: Axes, column: int, cell: Mapping[Hashable, Any]) -> None:
    """Write the cell's numbers in black or white, whichever has more contrast, and frame the task's own stage."""
    row, mean = cell["stage"], cell["mean"]
    if np.isnan(mean):
        axes.text(column, row, "not yet", ha="center", va="center", fontsize=8)
        return
    ink = style.ink_on(mean)
    several = cell["seeds"] > 1
    axes.text(column, row - 0.15 * several, f"{100 * mean:.0f}", ha="center", va="center", color=ink)
    if several:
        spread = f"{100 * cell['smallest']:.0f} to {100 * cell['largest']:.0f}"
        axes.text(column, row + 0.24, spread, ha="center", va="center", color=ink, fontsize=7)
    if cell["own"]:
        axes.add_patch(style.frame(column, row))


def _with_seeds(cells: pd.DataFrame) -> str:
    seeds = int(cells["seeds"].max())
    return f"{cells['label'].iloc[0]} ({seeds} seed{'s' * (seeds != 1)})"


@style.styled()
def draw_forgetting(scores: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Return one panel per task: its score after each stage, a line per label, its own stage marked; stacked if `narrow`."""
    table = retention_table(scores).dropna(subset="mean")
    if table.empty:
        raise RunError("Nothing has been evaluated yet; expected results.json in a stage's eval folder.")
    if table["label"].nunique() > style.MANY:
        return draw_task_strips(table)
    tasks, names = list(table["task"].unique()), shorten_names(scores["task"])
    columns = 1 if narrow else min(3, len(tasks)) if len(tasks) != 4 else 2
    rows, looks = -(-len(tasks) // columns), looks_of(table)
    width = style.PHONE if narrow else max(NARROWEST, 3.6 * columns + 0.4)
    figure = Figure(figsize=(width, (2.0 if narrow else 2.6) * rows + 0.9), layout="constrained")
    for position, task in enumerate(tasks):
        axes = figure.add_subplot(rows, columns, position + 1)
        _forgetting_panel(axes, table[table["task"] == task], looks, names)
        _name_stages(axes, scores)
        lowest = position + columns >= len(tasks)
        axes.tick_params(labelbottom=lowest, labelleft=position % columns == 0)
        axes.set(xlabel="after stage" * lowest, ylabel="score (%)" * (position % columns == 0))
    legend_above(figure, looks, "Score of each task over the stages; shaded: its own stage", narrow=narrow)
    return figure


def _forgetting_panel(axes: Axes, cells: pd.DataFrame, looks: Looks, names: dict[str, str]) -> None:
    for stage in cells.loc[cells["own"], "stage"].unique():
        axes.axvspan(stage - 0.18, stage + 0.18, color=style.RULE, alpha=0.2, linewidth=0)
    for label, line in cells.groupby("label", sort=False):
        line_with_band(axes, line["stage"], line, looks[str(label)])
    axes.set(title=names[cells["task"].iloc[0]] + ROLES.get(role_in_all(cells["role"]), ""), ylim=(-3, 103))
    axes.set_xlim(-0.3, cells["stage"].max() + 0.3)
    axes.grid(visible=True)


def _name_stages(axes: Axes, scores: pd.DataFrame) -> None:
    """Name the stages on the x axis by their tasks; where runs differ in order, number them."""
    names, stages = shorten_names(scores["task"]), scores.groupby("stage")["stage_task"].unique()
    shared = all(len(own) == 1 for own in stages)
    ticks = [
        "start" if not stage else fill(str(names.get(own[0], own[0])), 19) if shared else str(stage)
        for stage, own in stages.items()
    ]
    axes.set_xticks(list(stages.index), ticks, rotation=30, ha="right", rotation_mode="anchor")


@style.styled()
def draw_task_strips(table: pd.DataFrame) -> Figure:
    """Return one panel per task, a row per label and a column per stage: the mean score in %, its own stage framed.

    `table` is `tables.retention_table`'s.
    """
    labels, tasks = list(table["label"].unique()), list(table["task"].unique())
    names, columns = shorten_names(tasks), 3
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(12, rows * (0.24 * len(labels) + 1.0) + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        _strip(axes, table[table["task"] == task], labels)
        axes.set_title(names[task])
        axes.set_xlabel("after stage")
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    figure.suptitle("Score of each task over the stages (%); framed: its own stage", x=0.005, ha="left")
    return figure


def _strip(axes: Axes, cells: pd.DataFrame, labels: list[str]) -> None:
    wide = 100 * cells.pivot(index="label", columns="stage", values="mean").reindex(labels)
    values = wide.to_numpy(dtype=float)
    edges = [np.arange(size + 1) - 0.5 for size in reversed(values.shape)]
    axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=style.HEAT, vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=style.ink_on(value / 100)
            )
    for row, label in enumerate(labels):
        own = cells.loc[(cells["label"] == label) & cells["own"], "stage"]
        for stage in own:
            axes.add_patch(style.frame(stage, row))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xticks(range(values.shape[1]), [str(stage) if stage else "start" for stage in wide.columns])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@style.styled()
def draw_learning(scores: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Return the diagonal: each trained task right before (hollow) and right after (filled) its own stage."""
    table = retention_table(scores)
    if table["label"].nunique() > style.MANY:
        return draw_learning_rows(table)
    looks, tasks = looks_of(table), list(table.loc[table["role"] == "trained", "task"].unique())
    table = table.assign(place=table["task"].map({task: place for place, task in enumerate(tasks)}))
    width = style.PHONE if narrow else max(NARROWEST, 1.6 * len(tasks) + 3.0)
    figure = Figure(figsize=(width, 3.8), layout="constrained")
    axes = figure.subplots()
    shifts = 0.06 * (np.arange(len(looks)) - (len(looks) - 1) / 2)
    for (label, look), shift in zip(looks.items(), shifts, strict=True):
        _learning_line(axes, table[table["label"] == label], look, float(shift))
    names = shorten_names(scores["task"])
    axes.set_xticks(range(len(tasks)), [names[task] for task in tasks], rotation=30, ha="right", rotation_mode="anchor")
    axes.set(xlabel="trained task", ylabel="score on that task (%)", ylim=(-3, 103))
    axes.grid(visible=True)
    title = "Score right before (hollow) and right after (filled) the task's own stage"
    legend_above(figure, looks, title, narrow=narrow)
    return figure


def _learning_line(axes: Axes, cells: pd.DataFrame, look: dict[str, Any], shift: float) -> None:
    after = cells[cells["own"]].sort_values("place")
    before = after[["stage", "task"]].merge(cells.assign(stage=cells["stage"] + 1), on=["stage", "task"])
    x, seeds = after["place"] + shift, after["seeds"].max()
    axes.plot(x, 100 * after["mean"], **{**look, "linestyle": ""})
    if seeds > 1:
        axes.vlines(x, 100 * after["smallest"], 100 * after["largest"], color=look["color"], linewidth=4, alpha=0.3)
    axes.plot(before["place"] + shift, 100 * before["mean"], look["marker"], mec=look["color"], mfc="none")
    both = after.merge(before, on="task", suffixes=("_after", "_before"))
    ends = (100 * both["mean_before"], 100 * both["mean_after"])
    axes.vlines(both["place_after"] + shift, *ends, color=look["color"], linewidth=0.8, alpha=0.6)


@style.styled()
def draw_learning_rows(table: pd.DataFrame) -> Figure:
    """Return one panel per trained task, a row per label: its score right before (hollow) and right after its own stage.

    Thin lines run from the lowest to the highest seed.
    """
    labels = list(table["label"].unique())
    colour = style.colours(table["adapter"])
    tasks = list(table.loc[table["role"] == "trained", "task"].unique())
    names, columns = shorten_names(table["task"]), min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(12, rows * (0.22 * len(labels) + 1.0) + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        cells = table[table["task"] == task]
        for cell in cells[cells["own"]].to_dict("records"):
            before = cells.loc[(cells["label"] == cell["label"]) & (cells["stage"] == cell["stage"] - 1), "mean"]
            row, look = labels.index(str(cell["label"])), colour[str(cell["adapter"])]
            axes.hlines(row, 100 * cell["smallest"], 100 * cell["largest"], color=look, linewidth=3, alpha=0.3)
            axes.plot([100 * before.mean(), 100 * cell["mean"]], [row, row], color=look, linewidth=1)
            axes.plot(100 * before, [row] * len(before), "o", mec=look, mfc="none")
            axes.plot(100 * cell["mean"], row, "o", color=look)
        axes.set(title=names[task], xlabel="score (%)", xlim=(-3, 103), ylim=(len(labels) - 0.5, -0.5))
        axes.grid(visible=True, axis="both")
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    grid[0, 0].set_yticks(range(len(labels)), labels)
    title = "Score right before (hollow) and right after (filled) the task's own stage"
    figure.suptitle(title, x=0.005, ha="left")
    return figure
