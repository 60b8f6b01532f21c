"""Draw forgetting against the distance from the start: a mark per run, stage and task."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from harness.errors import RunError
from reports.figures import style
from reports.figures.curves import (
    legend_above,
    looks_of,
    on_common_axes,
    panels,
)

DRIFT_TITLE = "KL to the start against forgetting"


@style.styled()
def draw_drift(rows: pd.DataFrame) -> Figure:
    """Return forgetting (points) against the KL from the start (nats per token): a mark per run, stage and task.

    `rows` has the columns label, adapter, kl_to_start and forgot (a share). More than `style.MANY` labels get a panel each.
    Raises RunError where no row has both values.
    """
    rows = rows.dropna(subset=["kl_to_start", "forgot"])
    if rows.empty:
        raise RunError("No evaluated stage has recorded its KL to the start; `evaluation.drift` records it.")
    looks = looks_of(rows)
    if len(looks) > style.MANY:
        return draw_drift_panels(rows)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for label, cells in rows.groupby("label", sort=False):
        look = looks[str(label)] | {"linestyle": "", "markersize": 5, "alpha": 0.7}
        axes.plot(cells["kl_to_start"], 100 * cells["forgot"], **look)
    axes.set(xlabel="KL(start ‖ now), nats per token", ylabel="below the best so far (points)")
    axes.grid(visible=True, axis="both")
    legend_above(figure, {name: {**look, "linestyle": ""} for name, look in looks.items()}, DRIFT_TITLE)
    return figure


@style.styled()
def draw_drift_panels(rows: pd.DataFrame) -> Figure:
    """Return a panel per label on common axes: forgetting against the KL to the start, all other labels' marks in grey."""
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
    figure.suptitle(f"{DRIFT_TITLE}; grey: all other methods", x=0.005, ha="left")
    return figure
