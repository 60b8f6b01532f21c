"""Draw learning against forgetting: a named mark per method, with its intervals; a report's figure and a study's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import RunError
from reports.figures import style
from reports.figures.curves import looks_of
from reports.figures.label_placement import Name, write_names

TALL = 12  # with more marks than this, the figure is taller


@style.styled()
def draw_frontier(
    points: pd.DataFrame,
    by_seed: pd.DataFrame,
    *,
    lines: Mapping[str, Sequence[str]] | None = None,
    levels: Mapping[str, float] | None = None,
    narrow: bool = False,
) -> Figure:
    """Return learning accuracy (%) against Chaudhry's forgetting (points): a named mark per label.

    `points` is `tables.frontier_table`'s; `by_seed` has the columns label, learned and forgot, one row per run, drawn as small
    dots. Bars are t intervals over seeds, cut at the axes; a hollow mark is one seed. `lines` holds lists of labels to join
    by a line, and `levels` learning accuracies to draw as dotted lines. `narrow` is for a phone. Raises RunError without any
    mark.
    """
    points = points[[all(i.seeds for i in pair) for pair in points[["learned", "forgot"]].to_numpy()]]
    if points.empty:
        raise RunError("No run has both learning accuracy and forgetting yet; forgetting needs two finished stages.")
    figure = Figure(figsize=(style.PHONE if narrow else 10, 4.8 if len(points) <= TALL else 6.6))
    axes = figure.add_axes((0.16, 0.1, 0.82, 0.82) if narrow else (0.08, 0.1, 0.9, 0.82))
    looks = looks_of(points)
    for labels in (lines or {}).values():
        for label in labels:
            looks[label] = looks[label] | {"marker": looks[labels[0]]["marker"]}
        ends = points.set_index("label").loc[list(labels)]
        x, y = ([100 * interval.mean for interval in ends[name]] for name in ("forgot", "learned"))
        axes.plot(x, y, color=looks[labels[0]]["color"], linewidth=1.2, alpha=0.6, zorder=1)
    for row in points.to_dict("records"):
        _mark(axes, {str(key): value for key, value in row.items()}, looks[str(row["label"])])
    small = by_seed.dropna()
    axes.scatter(
        100 * small["forgot"], 100 * small["learned"], s=10, alpha=0.5, c=[looks[x]["color"] for x in small["label"]]
    )
    axes.set(xlabel="forgetting, Chaudhry (points; less is better)", ylabel="learning accuracy (%; more is better)")
    axes.set_title("Best is up and to the left")
    heights = pd.concat([small["learned"], pd.Series(list((levels or {}).values()), dtype=float)])
    low, high = _limits(100 * heights)
    axes.set(xlim=_limits(100 * small["forgot"]), ylim=(max(low, -3), min(high, 103)))
    for name, level in (levels or {}).items():
        axes.axhline(100 * level, color=style.RULE, linestyle=":", linewidth=1.4)
        axes.text(0.005, 100 * level, name, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    axes.grid(visible=True, axis="both")
    marks = points[["label", "forgot", "learned"]].to_numpy()
    names = [Name(label, 100 * x.mean, 100 * y.mean, looks[label]["color"]) for label, x, y in marks]
    write_names(axes, names, crosses=True)
    return figure


def _mark(axes: Axes, row: dict[str, Any], look: dict[str, Any]) -> None:
    """Draw a label's mean and, where it has several seeds, a bar for each of its two intervals."""
    forgot, learned = row["forgot"], row["learned"]
    x, y, single = 100 * forgot.mean, 100 * learned.mean, forgot.seeds < 2
    if not single:
        bar: dict[str, Any] = {"color": look["color"], "alpha": 0.55, "linewidth": 1.4}
        axes.plot([100 * forgot.low, 100 * forgot.high], [y, y], **bar)
        axes.plot([x, x], [100 * learned.low, 100 * learned.high], **bar)
    face = "none" if single else look["color"]
    axes.plot(x, y, look["marker"], color=look["color"], markerfacecolor=face, markersize=8)


def _limits(values: pd.Series) -> tuple[float, float]:
    """Return an axis's limits: the range of the seeds' values, and room for names on both sides, at least five points."""
    low, high = float(values.min()), float(values.max())
    room = max(5.0, 0.25 * (high - low))
    return low - room, high + room
