"""Draw items lost and gained by stage and task, and the outcomes of the lost ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.errors import RunError
from reports.data.flips import HOW_LOST, SINCE_OWN, STAGE
from reports.figures import style
from reports.figures.curves import outer_labels, panels
from reports.formatting import shorten_names

COLUMNS = 3


@style.styled()
def draw_flips(shares: pd.DataFrame, own: pd.DataFrame) -> Figure:
    """Return one panel per label, a row per stage and a column per task: items lost and gained over that stage, in %.

    `shares` is `flips.average_flips`'s; `own` has label, task and stage of the cells to frame. Colour is the net change.
    Raises RunError where no stored answers can be compared.
    """
    cells = shares[shares["kind"] == STAGE]
    if cells.empty:
        raise RunError(
            "No stored answers of two stages can be compared; expected samples.parquet next to results.json."
        )
    labels, tasks = list(cells["label"].unique()), list(cells["task"].unique())
    columns = 2 if len(labels) == 4 else min(COLUMNS, len(labels))
    rows, stages = -(-len(labels) // columns), int(cells["after"].max())
    width = max(7.0, columns * (0.85 * len(tasks) + 0.7) + 0.8)
    figure = Figure(figsize=(min(14.0, width), rows * (0.36 * stages + 0.4) + 1.6), layout="constrained")
    shown = panels(figure, len(labels), columns)
    limit = max(5.0, 100 * float((cells["gained"] - cells["lost"]).abs().max()))
    for axes, label in zip(shown, labels, strict=True):
        trained = own[(own["label"] == label) & own["task"].isin(tasks) & (own["stage"] <= stages)]
        _flips_panel(axes, cells[cells["label"] == label], trained, tasks, limit)
        for row in trained.to_dict("records"):
            axes.add_patch(style.frame(tasks.index(row["task"]), row["stage"] - 1))
        axes.set_title(label)
    if len({tuple(tick.get_text() for tick in axes.get_yticklabels()) for axes in shown}) == 1:
        outer_labels(shown, columns)
    style.colour_bar(figure, shown, "net change (points)")
    figure.suptitle("Items lost (−) and gained (+) over each stage (%); framed: its own task", x=0.005, ha="left")
    return figure


def _flips_panel(axes: Axes, cells: pd.DataFrame, trained: pd.DataFrame, tasks: list[str], limit: float) -> None:
    """Draw one label's cells; rows are named by their stages and the tasks that these train."""
    names, stages = shorten_names(tasks), sorted(cells["after"].unique())
    own = {stage: ", ".join(map(names.__getitem__, rows["task"])) for stage, rows in trained.groupby("stage")}
    net = np.full((len(stages), len(tasks)), np.nan)
    for cell in cells.to_dict("records"):
        row, column = stages.index(cell["after"]), tasks.index(cell["task"])
        net[row, column] = change = 100 * (cell["gained"] - cell["lost"])
        ink = style.ink_on((change + limit) / (2 * limit), style.CHANGE)
        text = f"−{100 * cell['lost']:.0f} +{100 * cell['gained']:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    edges = [np.arange(size + 1) - 0.5 for size in reversed(net.shape)]
    axes.pcolormesh(*edges, np.ma.masked_invalid(net), cmap=style.CHANGE, vmin=-limit, vmax=limit)
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.set_yticks(range(len(stages)), [f"{stage}: {own[stage]}" if stage in own else str(stage) for stage in stages])
    axes.set_xticks(range(len(tasks)), [names[task] for task in tasks], rotation=30, ha="right", rotation_mode="anchor")
    axes.set(xlabel="task evaluated", ylabel="stage")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@style.styled()
def draw_outcomes(shares: pd.DataFrame) -> Figure:
    """Return one panel per earlier task, a bar per label: items lost since its own stage by outcome, and items gained.

    Lost items are to the left, gained ones to the right, in % of the task's items. `shares` is `flips.average_flips`'s.
    Raises RunError where no task has a later stage.
    """
    cells = shares[shares["kind"] == SINCE_OWN]
    if cells.empty:
        raise RunError(
            "No stored answers after a task's own stage and at the end; forgetting needs two finished stages."
        )
    labels, tasks = list(cells["label"].unique()), list(cells["task"].unique())
    names, columns = shorten_names(shares["task"]), min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(11, rows * (0.3 * len(labels) + 0.9) + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        _bars(axes, cells[cells["task"] == task].set_index("label"), labels)
        axes.set(title=names[task], xlabel="lost ← % of items → gained")
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    colours = {f"lost: {how}": style.OUTCOME_COLOURS[how] for how in HOW_LOST} | {
        "gained": style.OUTCOME_COLOURS["correct"]
    }
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in colours.items()]
    title = "Items lost and gained between a task's own stage and the end"
    legend = figure.legend(handles=handles, loc="outside upper left", ncols=4, title=title)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(12)
    return figure


def _bars(axes: Axes, cells: pd.DataFrame, labels: list[str]) -> None:
    cells = cells.reindex(labels)
    axes.use_sticky_edges = False  # else the longest bar ends in the frame and looks cut off
    left, rows = np.zeros(len(labels)), range(len(labels))
    for how in HOW_LOST:
        share = 100 * cells[f"lost_{how}"].fillna(0).to_numpy(dtype=float)
        axes.barh(rows, -share, left=-left, color=style.OUTCOME_COLOURS[how], height=0.7)
        left = left + share
    axes.barh(rows, 100 * cells["gained"].fillna(0), color=style.OUTCOME_COLOURS["correct"], height=0.7)
    axes.axvline(0, color=style.RULE, linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.grid(visible=True, axis="x")
