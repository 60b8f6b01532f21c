"""Draw retention against learning along the curves: a panel per stage, thin lines for seeds, a thick one for their mean."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import RunError
from reports.figures import style
from reports.figures.curves import legend_above, looks_of, outer_labels, panels
from reports.formatting import shorten_names

COLUMNS = 4


@style.styled()
def draw_curves(points: pd.DataFrame) -> Figure:
    """Return the change of the other tasks (points) against the score of the stage's own task (%).

    There is a panel per suite, order and stage; its title names suite and order where there are several. `points` is
    `learning_curves.curve_frame`'s; the x axis is its monotone fit of learning. Means are over seeds, point by point; a ring
    marks where a stage begins. With more than `style.MANY` labels no lines of single seeds are drawn. Raises RunError without
    any curve.
    """
    if points.empty:
        raise RunError("No run has a learning curve; set evaluation.every.")
    looks, settings = looks_of(points), points.groupby(["suite", "order"], sort=False).ngroups
    stages = list(points.groupby(["suite", "order", "stage", "task"]))
    columns = min(COLUMNS, len(stages))
    rows = -(-len(stages) // columns)
    figure = Figure(figsize=(12 if columns > 2 else 9, 3.1 * rows + 0.9), layout="constrained")
    shown, names = panels(figure, len(stages), columns), shorten_names(points["task"])
    for axes, ((suite, order, stage, task), found) in zip(shown, stages, strict=True):
        for label, own in found.groupby("label", sort=False):
            look = {**looks[str(label)], "marker": None}
            _label_lines(axes, own, look, seeds=len(looks) <= style.MANY)
        axes.axhline(0, color=style.RULE, linewidth=0.8)
        setting = f"{suite}, {order}\n" if settings > 1 else ""
        axes.set_title(f"{setting}{stage}: {names[str(task)]}")
        axes.set(xlabel="learned: score of the stage's task (%)", ylabel="other tasks since the\nstage began (points)")
        axes.grid(visible=True, axis="both")
    limits = [axes.get_ylim() for axes in shown]
    for axes in shown:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    outer_labels(shown, columns)
    for axes in shown:
        axes.tick_params(labelbottom=True)
    lines = {label: {**look, "marker": None} for label, look in looks.items()}
    legend_above(figure, lines, "Retention along learning; thick: mean over seeds")
    return figure


def _label_lines(axes: Axes, points: pd.DataFrame, look: dict[str, Any], *, seeds: bool) -> None:
    """Draw a label's curves in one stage; the mean is over the seeds that have a point."""
    if seeds and points["seed"].nunique() > 1:
        for _, own in points.groupby("seed"):
            axes.plot(100 * own["reached"], 100 * own["kept"], color=look["color"], linewidth=0.6, alpha=0.35)
    mean = 100 * points.groupby("point")[["reached", "kept"]].mean()
    axes.plot(mean["reached"], mean["kept"], **{**look, "linewidth": 2.2})
    axes.plot(mean["reached"].iloc[:1], mean["kept"].iloc[:1], "o", mec=look["color"], mfc="none", markersize=7)
