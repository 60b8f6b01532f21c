"""Figures for more methods than there are colours: a row per method, named at the axis, so that no legend is needed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import style


@style.styled()
def task_strips(table: pd.DataFrame) -> Figure:
    """Return one panel per task, a row per label and a column per stage: the mean score in %, its own stage framed.

    `table` is `tables.retention`'s.
    """
    labels, tasks = list(table["label"].unique()), list(table["task"].unique())
    names, columns = style.short_names(tasks), 3
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
def learning_rows(table: pd.DataFrame) -> Figure:
    """Return one panel per trained task, a row per label: its score right before (hollow) and right after its own stage.

    Thin lines run from the lowest to the highest seed.
    """
    labels = list(table["label"].unique())
    colour = style.colours(table["adapter"])
    tasks = list(table.loc[table["role"] == "trained", "task"].unique())
    names, columns = style.short_names(table["task"]), min(4, len(tasks))
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
    title = "Learning: score right before (hollow) and right after (filled) the task's own stage"
    figure.suptitle(title, x=0.005, ha="left")
    return figure
