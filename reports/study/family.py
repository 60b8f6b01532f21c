"""Learning against forgetting for more methods than there are colours: each named beside its mark."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import RunError
from reports.document.sentences import format_count
from reports.figures import style
from reports.figures.label_placement import Name, write_names
from reports.study.data import OPD, Results
from reports.study.study_figures import FRONTIER

OTHERS = "#4b5563"


@style.styled()
def family(results: Results) -> Figure:
    """Return learning accuracy against forgetting as in the suite, a mark per method, hollow where it has one seed.

    A thin line leads to a method from the one that it is named after, whose colour it has.
    """
    if not results.many:
        raise RunError(f"The study has {format_count(len(results.methods), 'method')}; a legend names them.")
    places = method_places(results)
    if places.empty:
        raise RunError("No run of the study has both learning accuracy and forgetting; expected at least two stages.")
    figure = Figure(figsize=(10, 6.6))
    axes = figure.add_axes((0.07, 0.09, 0.91, 0.85))
    for number, row in enumerate(places.to_dict("records")):
        _mark(axes, {str(key): value for key, value in row.items()}, number)
    _lead_from_bases(axes, places.set_index("method"))
    axes.set(xlabel="forgetting, Chaudhry (points; less is better, to the left)", ylabel="learning accuracy (%)")
    axes.set_title("Learning against forgetting; hollow: one seed")
    axes.margins(0.08)
    axes.grid(visible=True, axis="both")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    write_names(axes, [Name(method, x, y, _colour(method)) for method, x, y in places[["method", "x", "y"]].to_numpy()])
    return figure


def family_reading(results: Results) -> str:
    """Return who learned most, who forgot least of those that learned as much as OPD, and how many have one seed."""
    places = method_places(results).set_index("method")
    most = places["y"].idxmax()
    told = [f"Learned most: {most}, {places.at[most, 'y']:.1f} %."]
    if OPD in places.index:
        equal = places[(places["y"] >= places.at[OPD, "y"]) & (places.index != OPD)]
        told.append(_least(equal, "that learned at least as much as opd", "points"))
    single = int((places["seeds"] == 1).sum())
    told.append(
        f"{format_count(single, 'method')} of {len(places)} ran with one seed, which establishes no difference."
    )
    return " ".join(filter(None, told))


def method_places(results: Results) -> pd.DataFrame:
    """Return each method's mean forgetting (x, points), learning (y, %), their ranges over seeds, and its seeds."""
    rows = []
    for method in results.methods:
        x, y = (100 * results.series(results.own(results.starts[0], method), name) for name in FRONTIER)
        if x.notna().any() and y.notna().any():
            ends = {"left": x.min(), "right": x.max(), "low": y.min(), "high": y.max()}
            rows.append({"method": method, "x": x.mean(), "y": y.mean(), "seeds": int(x.notna().sum()), **ends})
    return pd.DataFrame(rows)


def _least(places: pd.DataFrame, which: str, unit: str) -> str:
    if places.empty:
        return f"No other method {which.removeprefix('that ')}."
    least = places["x"].idxmin()
    return f"Of the {len(places)} {which}, forgot least: {least}, {places.at[least, 'x']:.1f} {unit}.".replace("-", "−")


def _mark(axes: Axes, row: dict[str, Any], number: int) -> None:
    """Draw a method's mark: a circle, and another shape for what is named after a well-known method."""
    colour, single = _colour(row["method"]), row["seeds"] == 1
    if not single:
        axes.hlines(row["y"], row["left"], row["right"], color=colour, alpha=0.3, linewidth=1.2)
        axes.vlines(row["x"], row["low"], row["high"], color=colour, alpha=0.3, linewidth=1.2)
    variant = style.base(row["method"]) != row["method"]
    marker = style.MARKERS[1 + number % (len(style.MARKERS) - 1)] if variant else style.MARKERS[0]
    face = "white" if single else colour
    axes.plot(row["x"], row["y"], marker=marker, color=colour, markerfacecolor=face, markersize=7, linestyle="")


def _lead_from_bases(axes: Axes, places: pd.DataFrame) -> None:
    for method in map(str, places.index):
        base = style.base(method)
        if base != method and base in places.index:
            ends = places.loc[[base, method]]
            axes.plot(ends["x"], ends["y"], color=_colour(method), linewidth=0.8, alpha=0.5, zorder=1)


def _colour(method: str) -> str:
    return style.KNOWN.get(style.base(method), OTHERS)
