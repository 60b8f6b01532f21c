"""Helpers of figures with many lines: each label's look, smoothing, bands, stages on the axis, panels and legends."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports.figures import style
from reports.formatting import shorten_names

SMOOTHING = 5  # steps of a rolling mean
ACROSS = 4  # panels in a row, where each label has its own

Looks = dict[str, dict[str, Any]]


def looks_of(table: pd.DataFrame) -> Looks:
    """Return each label's style: the colour of its adapter, dashes that tell labels of one colour apart, and its marker.

    Inside `style.shared` the styles are those of the whole report's labels, so that a label looks the same in every figure.
    """
    own = dict(table[["label", "adapter"]].drop_duplicates().itertuples(index=False, name=None))
    everywhere = style.shared_adapters()
    pairs = pd.Series(everywhere if own.items() <= everywhere.items() else own)
    shade = pairs.map(style.colours(pairs))
    variant = pairs.groupby(shade).cumcount()
    looks = {
        str(label): {
            "label": label,
            "color": colour,
            "linestyle": style.DASHES[number % len(style.DASHES)],
            "marker": style.MARKERS[position % len(style.MARKERS)],
        }
        for position, (label, colour, number) in enumerate(zip(pairs.index, shade, variant, strict=True))
    }
    return {label: looks[label] for label in own}


def smooth(steps: pd.DataFrame, field: str) -> pd.DataFrame:
    """Return `field` per label and global step: smoothed within each run's stage, then mean and range of seeds."""
    steps = steps.sort_values("global_step")
    rolling = steps.groupby(["label", "seed", "stage"])[field].transform(
        lambda values: values.rolling(SMOOTHING, center=True, min_periods=1).mean()
    )
    groups = steps.assign(value=rolling).groupby(["label", "stage", "global_step"], sort=False)["value"]
    return groups.agg(mean="mean", smallest="min", largest="max", seeds="count").reset_index()


def line_with_band(axes: Axes, x: pd.Series, line: pd.DataFrame, look: dict[str, Any], scale: float = 100) -> None:
    """Draw the column `mean` over x and, with several seeds, a band from `smallest` to `largest`."""
    axes.plot(x, scale * line["mean"], **look)
    if line["seeds"].max() > 1:
        low, high = scale * line["smallest"], scale * line["largest"]
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def mark_stages(axes: Axes, steps: pd.DataFrame, *, named: bool = True, ticks: int = 10) -> None:
    """Set the axis of training steps: a line where a stage begins, the stages' names above, and at most `ticks` numbers."""
    names, top = shorten_names(steps["task"]), axes.get_xaxis_transform()
    bounds = steps.groupby(["stage", "task"])["global_step"].agg(["min", "max"]).reset_index()
    for stage in bounds.to_dict("records"):
        if stage["min"]:
            axes.axvline(stage["min"] - 0.5, color=style.RULE, linewidth=1)
        middle, text = (stage["min"] + stage["max"]) / 2, fill(f"{stage['stage']}: {names[stage['task']]}", 24)
        if named:
            axes.text(middle, 1.02, text, transform=top, ha="center", va="bottom")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
    axes.set_xlim(-0.5, steps["global_step"].max() + 0.5)
    axes.grid(visible=True)


def panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """Return `count` panels in rows of `columns`."""
    rows = -(-count // columns)
    return [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def on_common_axes(shown: Sequence[Axes], columns: int) -> None:
    """Give panels the same limits, and numbers only at the outer edges; much faster than matplotlib's shared axes."""
    limits = np.array([[*axes.get_xlim(), *axes.get_ylim()] for axes in shown])
    low, high = limits.min(axis=0), limits.max(axis=0)
    for axes in shown:
        axes.set(xlim=(low[0], high[1]), ylim=(low[2], high[3]))
    outer_labels(shown, columns)


def outer_labels(shown: Sequence[Axes], columns: int) -> None:
    """Keep the y labels at the left edge and the x labels at the lower edge, where all panels have the same."""
    for place, axes in enumerate(shown):
        if place % columns:
            axes.tick_params(labelleft=False)
            axes.set_ylabel("")
        if place + columns < len(shown):
            axes.tick_params(labelbottom=False)
            axes.set_xlabel("")


def legend_above(figure: Figure, looks: Looks, title: str, *, narrow: bool = False) -> None:
    """Put a legend of the lines above the panels, with the figure's title as its own."""
    handles = [Line2D([], [], **look) for look in looks.values()]
    legend = figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(2 if narrow else 6, len(handles)),
        title=fill(title, 46) if narrow else title,
    )
    legend.set_alignment("left")
    legend.get_title().set_fontsize(11 if narrow else 12)
