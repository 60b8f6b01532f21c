"""Draw the smallest detectable difference against the hours that the runs take."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from reports.figures import style


@style.styled()
def draw_power(curves: pd.DataFrame, effects: Mapping[str, float]) -> Figure:
    """Return one panel per unit with a line per claim; `effects` holds by unit the effect to find, a dashed line.

    `curves` has the columns claim, unit, hours and detectable.
    """
    units = list(dict.fromkeys(curves["unit"]))
    figure = Figure(figsize=(7, 3.4 * len(units)), layout="constrained")
    panels = figure.subplots(len(units), squeeze=False)[:, 0]
    for axes, unit in zip(panels, units, strict=True):
        claims = curves[curves["unit"] == unit]
        for place, (claim, points) in enumerate(claims.groupby("claim", sort=False)):
            colour = style.PALETTE[place % len(style.PALETTE)]
            axes.plot(points["hours"], points["detectable"], marker="o", markersize=3, color=colour, label=str(claim))
        if unit in effects:
            axes.axhline(
                effects[unit], color="0.4", linewidth=1, linestyle="--", label=f"wanted: {effects[unit]:g} {unit}"
            )
        axes.set(
            xlabel="hours of runs, one after another", ylabel=f"smallest difference found ({unit})", ylim=(0, None)
        )
        axes.grid(visible=True)
        axes.legend(fontsize="small")
    panels[0].set_title("What a budget finds with 80 % power")
    return figure
