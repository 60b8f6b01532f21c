"""Draw learning, forgetting and training against the values of one factor of a study."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.errors import RunError
from reports.figures import style

PANELS = {
    "learning_accuracy": "learning accuracy (%)",
    "forgetting_chaudhry": "forgetting, Chaudhry (points)",
    "entropy": "mean entropy in training (nats)",
    "routed_share": "tokens routed to forward KL (%)",
}


@style.styled()
def draw_factor(table: pd.DataFrame, title: str) -> Figure:
    """Return one panel per figure of PANELS that has data: a line per entry through the factor's values.

    `table` has the columns entry, value, figure and score, one row per seed; a value of nan is the suite's own setting, drawn
    as a dashed line. Raises RunError where no value has a score.
    """
    table = table.dropna(subset="score")
    values = sorted(table["value"].dropna().unique())
    known = [figure for figure in PANELS if figure in set(table.loc[table["value"].notna(), "figure"])]
    if not known:
        raise RunError(f"No finished run varies {title}; `harness study` makes the missing runs.")
    entries = list(table["entry"].unique())
    looks = style.colours(entries)
    columns = min(2, len(known))
    figure = Figure(figsize=(9, 2.7 * -(-len(known) // columns) + 0.8), layout="constrained")
    for place, name in enumerate(known):
        axes = figure.add_subplot(-(-len(known) // columns), columns, place + 1)
        for number, entry in enumerate(entries):
            own = table[(table["figure"] == name) & (table["entry"] == entry)]
            _draw_entry(axes, own, values, {"color": looks[entry], "marker": style.MARKERS[number % 7]}, name)
        axes.set_xticks(range(len(values)), [f"{value:g}".replace("-", "−") for value in values])
        axes.set(title=PANELS[name], xlim=(-0.4, len(values) - 0.6))
        axes.margins(y=0.15)
        axes.grid(visible=True)
    figure.supxlabel(title, fontsize="medium")
    handles = [
        Line2D([], [], color=looks[entry], marker=style.MARKERS[number % 7], label=entry)
        for number, entry in enumerate(entries)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(handles)))
    return figure


def _draw_entry(axes: Axes, own: pd.DataFrame, values: list[float], look: dict[str, Any], name: str) -> None:
    """Draw an entry's means with the range of its seeds, and its mean at the suite's own setting as a dashed line."""
    scale = 1 if name == "entropy" else 100
    by_value = (scale * own.groupby("value")["score"].agg(["mean", "min", "max"])).reindex(values)
    axes.plot(np.arange(len(values)), by_value["mean"], **look)
    axes.vlines(np.arange(len(values)), by_value["min"], by_value["max"], color=look["color"], alpha=0.4)
    level = own.loc[own["value"].isna(), "score"]
    if len(level):
        axes.axhline(scale * level.mean(), color=look["color"], linestyle="--", linewidth=1.2, alpha=0.8)
