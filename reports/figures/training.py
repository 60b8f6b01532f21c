"""The advantage's distribution over training, and what a run's seconds went to."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.errors import RunError
from reports.data.frames import ADVANTAGE
from reports.figures import style
from reports.figures.curves import (
    ACROSS,
    SMOOTHING,
    legend_above,
    looks_of,
    mark_stages,
    on_common_axes,
    panels,
    smoothed,
)

PHASES = {
    "generate": style.PALETTE[5],
    "teacher": style.PALETTE[4],
    "student": style.PALETTE[0],
    "rest of the step": style.PALETTE[3],
    "evaluate": style.PALETTE[2],
    "models": style.PALETTE[6],
}


@style.styled()
def advantage_tails(steps: pd.DataFrame) -> Figure:
    """Return one panel per label: the advantage's median and quantiles over training, on a scale that shows both tails.

    Bands hold the middle 50 and 90 % of tokens, the outer lines the lowest and highest hundredth; means over seeds of a
    rolling mean. The axis is linear within ±0.1 nats and logarithmic beyond. Raises RunError without any advantage.
    """
    steps = steps.dropna(subset="advantage_q50")
    if steps.empty:
        raise RunError("No training step has advantage quantiles; methods that a teacher scores have.")
    looks = looks_of(steps)
    columns = max(2, min(3, len(looks))) if len(looks) <= style.MANY else ACROSS
    figure = Figure(figsize=(11, max(3.4, 1.9 * -(-len(looks) // columns) + 0.8)), layout="constrained")
    shown = panels(figure, len(looks), columns)
    for axes, (label, look) in zip(shown, looks.items(), strict=True):
        own = steps[steps["label"] == label]
        _tails_panel(axes, own, look["color"])
        mark_stages(axes, own, named=False, ticks=6 if columns < ACROSS else 4)
        axes.axhline(0, color=style.RULE, linewidth=0.8)
        axes.set_title(label)
    on_common_axes(shown, columns)
    figure.supxlabel("training step, stages in order, divided by lines", fontsize="medium")
    figure.supylabel("advantage, log p(y) − log q(y) (nats)", fontsize="medium")
    title = f"Advantage: median, middle 50 and 90 %, lowest and highest 1 %; rolling mean of {SMOOTHING} steps"
    figure.suptitle(title, x=0.005, ha="left")
    return figure


def _tails_panel(axes: Axes, steps: pd.DataFrame, colour: str) -> None:
    """Draw one label's bands and lines, on a scale that shows both tails."""
    line = {q: smoothed(steps.dropna(subset=f"advantage_q{q}"), f"advantage_q{q}") for q in _quantiles(steps)}
    for low, high, alpha in (("05", "95", 0.2), ("25", "75", 0.4)):
        if {low, high} <= set(line):
            x = line[low]["global_step"]
            axes.fill_between(x, line[low]["mean"], line[high]["mean"], color=colour, alpha=alpha, linewidth=0)
    for q, width in (("50", 1.4), ("01", 0.8), ("99", 0.8)):
        if q in line:
            axes.plot(line[q]["global_step"], line[q]["mean"], color=colour, linewidth=width)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    _name_tails(axes, line)


def _name_tails(axes: Axes, line: dict[str, pd.DataFrame]) -> None:
    """Name the two outer lines where they begin, so that no legend is needed."""
    for q, name in (("01", "lowest 1 %"), ("99", "highest 1 %")):
        if q in line:
            start = line[q][["global_step", "mean"]].iloc[0]
            axes.annotate(name, tuple(start), (4, 3), textcoords="offset points", fontsize=8)


def _quantiles(steps: pd.DataFrame) -> list[str]:
    return [name.removeprefix("advantage_q") for name in ADVANTAGE[1:] if steps[name].notna().any()]


@style.styled()
def cost_bars(table: pd.DataFrame) -> Figure:
    """Return a bar per label: seconds of one run by phase, mean over runs; `table` is `tables.cost`'s."""
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
        axes.barh(range(len(labels)), seconds, left=left, color=PHASES[name], height=0.7)
        left = left + seconds.to_numpy(dtype=float)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel="seconds per run")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, axis="x")
    legend_above(
        figure, {n: {"color": c, "linewidth": 6, "label": n} for n, c in PHASES.items()}, "Seconds of one run by phase"
    )
    return figure
