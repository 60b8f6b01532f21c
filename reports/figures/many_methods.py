"""Figures for more methods than there are colours: a row or a panel per method that bears its name, so no legend is needed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.curves import ACROSS, line_with_band, looks_of, mark_stages, on_common_axes, panels, smoothed


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


@style.styled()
def many_curves(
    steps: pd.DataFrame, fields: Mapping[str, str], told: tuple[str, str], scale: float = 1, *, symlog: float = 0
) -> Figure:
    """Return a panel per label on common axes: columns of the step log over training, the first of the reference in grey.

    `fields` gives each column its dashes, `told` is unit and title; `symlog` is where a logarithmic axis becomes linear.
    """
    looks, (unit, title) = looks_of(steps), told
    first, main = style.reference(list(looks)), next(iter(fields))
    figure = Figure(figsize=(12, 1.6 * -(-len(looks) // ACROSS) + 1.2), layout="constrained")
    lines = {field: dict(list(smoothed(steps, field).groupby("label"))) for field in fields}
    behind = lines[main][first]
    shown = panels(figure, len(looks), ACROSS)
    for axes, label in zip(shown, looks, strict=True):
        own = steps[steps["label"] == label]
        axes.plot(behind["global_step"], scale * behind["mean"], color=style.RULE, linewidth=1)
        for field, dashes in fields.items():
            line = lines[field][label]
            line_with_band(
                axes, line["global_step"], line, {"color": looks[label]["color"], "linestyle": dashes}, scale
            )
        mark_stages(axes, own, named=False, ticks=4)
        axes.set_title(label)
        if symlog:
            axes.set_yscale("symlog", linthresh=symlog)
        else:
            axes.set_ylim(bottom=0)
    on_common_axes(shown, ACROSS)
    figure.supxlabel("training step, stages in order, divided by lines", fontsize="medium")
    figure.supylabel(unit, fontsize="medium")
    figure.suptitle(f"{title}; grey: {first}", x=0.005, ha="left")
    return figure


@style.styled()
def drift_panels(rows: pd.DataFrame) -> Figure:
    """Return a panel per label on common axes: its marks of forgetting against the KL to the start, all others' in grey."""
    looks = looks_of(rows)
    figure = Figure(figsize=(12, 1.5 * -(-len(looks) // 6) + 1.0), layout="constrained")
    shown = panels(figure, len(looks), 6)
    for axes, label in zip(shown, looks, strict=True):
        own, others = rows[rows["label"] == label], rows[rows["label"] != label]
        axes.scatter(others["kl_to_start"], 100 * others["forgot"], s=3, color=style.RULE, alpha=0.3, rasterized=True)
        axes.scatter(own["kl_to_start"], 100 * own["forgot"], s=12, color=looks[label]["color"])
        axes.set_title(label, fontsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(visible=True, axis="both")
    on_common_axes(shown, 6)
    figure.supxlabel("KL(start ‖ now), nats per token", fontsize="medium")
    figure.supylabel("below the best so far (points)", fontsize="medium")
    figure.suptitle("KL to the start against forgetting; grey: all other methods", x=0.005, ha="left")
    return figure
