"""Draw how many seconds of a run each phase took."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures import style
from reports.figures.curves import legend_above

PHASE_COLOURS = {
    "generate": style.PALETTE[5],
    "teacher": style.PALETTE[4],
    "student": style.PALETTE[0],
    "rest of the step": style.PALETTE[1],
    "evaluate": style.PALETTE[2],
    "models": style.PALETTE[6],
}


@style.styled()
def draw_cost(table: pd.DataFrame) -> Figure:
    """Return a bar per label: seconds of one run by phase, mean over runs; `table` is `tables.cost_table`'s."""
    labels = list(table["label"])
    inside = table[["seconds_generate", "seconds_teacher", "seconds_student"]].sum(axis=1)
    parts = {
        "generate": table["seconds_generate"],
        "teacher": table["seconds_teacher"],
        "student": table["seconds_student"],
        "rest of the step": (table["seconds_step"] - inside).clip(lower=0),
        "evaluate": table["seconds_evaluate"],
        "models": table["seconds_models"].fillna(0),
    }
    figure = Figure(figsize=(9, 0.34 * len(labels) + 1.5), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(labels))
    for name, seconds in parts.items():
        axes.barh(range(len(labels)), seconds, left=left, color=PHASE_COLOURS[name], height=0.7)
        left = left + seconds.to_numpy(dtype=float)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel="seconds per run")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, axis="x")
    looks = {name: {"color": colour, "linewidth": 6, "label": name} for name, colour in PHASE_COLOURS.items()}
    legend_above(figure, looks, "Seconds of one run by phase")
    return figure
