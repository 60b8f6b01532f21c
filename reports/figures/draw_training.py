"""Draw columns of the step log over training: entropy and others as lines, the advantage with its tails.

More than `style.MANY` labels get a panel each, with the line of the reference in grey.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import RunError
from reports.data.frames import ADVANTAGE
from reports.figures import style
from reports.figures.curves import (
    ACROSS,
    SMOOTHING,
    Looks,
    legend_above,
    line_with_band,
    looks_of,
    mark_stages,
    on_common_axes,
    panels,
    smooth,
)

ENTROPY_TITLE = "Entropy in training"


@style.styled()
def draw_entropy(steps: pd.DataFrame) -> Figure:
    """Return the student's entropy over training steps, as `draw_training` draws it."""
    title = f"{ENTROPY_TITLE}, rolling mean of {SMOOTHING} steps within a stage"
    return draw_training(steps, "entropy", "entropy of the student\n(nats per answer token)", title)


@style.styled()
def draw_training(
    steps: pd.DataFrame, field: str, unit: str, title: str, scale: float = 1, *, shades: bool = False
) -> Figure:
    """Return a field of the step log over training, one panel per suite and order, stages named and divided by lines.

    Lines are means over seeds of a centred rolling mean of SMOOTHING steps within a stage, multiplied by `scale`; bands run
    from the lowest to the highest seed. `unit` is the y label. More than `style.MANY` labels get a panel each, see
    `draw_training_panels`. `shades` colours the labels from light to dark in their order. Raises RunError where no step has
    the field.
    """
    steps = steps.dropna(subset=field)
    if steps.empty:
        raise RunError(f"No training step has recorded `{field}`; expected it in a stage's train/steps.jsonl.")
    looks = {label: {**look, "marker": None} for label, look in looks_of(steps).items()}
    if shades:
        looks = {
            label: {"label": label, "color": colour}
            for label, colour in zip(looks, style.shades(len(looks)), strict=True)
        }
    if len(looks) > style.MANY:
        return draw_training_panels(steps, {field: "-"}, (unit, title), scale)
    orders = list(steps.groupby(["suite", "order"], sort=False))
    figure = Figure(figsize=(11, 3.2 * len(orders) + 0.6), layout="constrained")
    for axes, (order, rows) in zip(figure.subplots(len(orders), squeeze=False).flat, orders, strict=True):
        _curves_panel(axes, rows, field, looks, scale)
        axes.set(xlabel="training step, stages in order", ylabel=unit)
        if len(orders) > 1:
            axes.set_title(", ".join(map(str, order)), pad=18)
    legend_above(figure, looks, title)
    return figure


def _curves_panel(axes: Axes, steps: pd.DataFrame, field: str, looks: Looks, scale: float) -> None:
    for label, line in smooth(steps, field).groupby("label", sort=False):
        line_with_band(axes, line["global_step"], line, looks[str(label)], scale=scale)
    axes.set_ylim(0, max(1.05 * axes.get_ylim()[1], 1e-6))
    mark_stages(axes, steps)


@style.styled()
def draw_training_panels(
    steps: pd.DataFrame, fields: Mapping[str, str], heading: tuple[str, str], scale: float = 1, *, symlog: float = 0
) -> Figure:
    """Return a panel per label on common axes: columns of the step log over training.

    `fields` maps columns to dashes; the first column of the reference label is drawn grey in every panel. `heading` holds unit
    and title. With `symlog` the y axis is logarithmic, and linear below that value.
    """
    looks, (unit, title) = looks_of(steps), heading
    first, main = style.reference(list(looks)), next(iter(fields))
    figure = Figure(figsize=(12, 1.6 * -(-len(looks) // ACROSS) + 1.2), layout="constrained")
    lines = {field: dict(list(smooth(steps, field).groupby("label"))) for field in fields}
    behind = lines[main][first]
    shown = panels(figure, len(looks), ACROSS)
    for axes, label in zip(shown, looks, strict=True):
        own = steps[steps["label"] == label]
        axes.plot(behind["global_step"], scale * behind["mean"], color=style.RULE, linewidth=1)
        for field, dashes in fields.items():
            line = lines[field][label]
            line_with_band(
                axes, line["global_step"], line, {"color": looks[label]["color"], "linestyle": dashes}, scale
            )
        mark_stages(axes, own, named=False, ticks=4)
        axes.set_title(label)
        if symlog:
            axes.set_yscale("symlog", linthresh=symlog)
        else:
            axes.set_ylim(bottom=0)
    on_common_axes(shown, ACROSS)
    figure.supxlabel("training step, stages in order, divided by lines", fontsize="medium")
    figure.supylabel(unit, fontsize="medium")
    figure.suptitle(f"{title}; grey: {first}", x=0.005, ha="left")
    return figure


@style.styled()
def draw_advantage(steps: pd.DataFrame) -> Figure:
    """Return one panel per label: the advantage's median and quantiles over training, on a scale that shows both tails.

    Bands hold the middle 50 and 90 % of tokens, the outer lines the lowest and highest hundredth; means over seeds of a
    rolling mean. The axis is linear within ±0.1 nats and logarithmic beyond. Raises RunError without any advantage.
    """
    steps = steps.dropna(subset="advantage_q50")
    if steps.empty:
        raise RunError("No training step has recorded advantage quantiles; methods with a teacher record them.")
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
    line = {q: smooth(steps.dropna(subset=f"advantage_q{q}"), f"advantage_q{q}") for q in _quantiles(steps)}
    for low, high, alpha in (("05", "95", 0.2), ("25", "75", 0.4)):
        if {low, high} <= set(line):
            x = line[low]["global_step"]
            axes.fill_between(x, line[low]["mean"], line[high]["mean"], color=colour, alpha=alpha, linewidth=0)
    for q, width in (("50", 1.4), ("01", 0.8), ("99", 0.8)):
        if q in line:
            axes.plot(line[q]["global_step"], line[q]["mean"], color=colour, linewidth=width)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.margins(y=0.12)  # room for the names of the outer lines
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    _name_tails(axes, line)


def _name_tails(axes: Axes, line: dict[str, pd.DataFrame]) -> None:
    """Name the two outer lines where they begin, outside of them, so that no legend is needed."""
    for q, name, above in (("01", "lowest 1 %", -11), ("99", "highest 1 %", 5)):
        if q in line:
            start = line[q][["global_step", "mean"]].iloc[0]
            axes.annotate(name, tuple(start), (4, above), textcoords="offset points", fontsize=8)


def _quantiles(steps: pd.DataFrame) -> list[str]:
    return [name.removeprefix("advantage_q") for name in ADVANTAGE[1:] if steps[name].notna().any()]
