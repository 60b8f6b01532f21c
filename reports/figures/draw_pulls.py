"""Draw over training the losses' pulls on the student, and its agreement with the teacher.

Methods without a teacher's scores log neither, so they are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import RunError
from reports.figures import style
from reports.figures.curves import SMOOTHING, Looks, legend_above, line_with_band, looks_of, mark_stages, smooth
from reports.figures.draw_training import draw_training_panels

Lines = tuple[tuple[str, str, str], ...]
UP, DOWN = ("pull_up", "-", "up"), ("pull_down", "--", "down")
STUDENT, TEACHER = ("student_top_mass", "-", "student, below"), ("teacher_top_mass", "--", "teacher, below")


@style.styled()
def draw_pulls(steps: pd.DataFrame) -> Figure:
    """Return the mean pull up and pull down over training, two panels per suite, order and start.

    Each panel has its own scale: the student is mostly below its teacher, so the pull up is many times the pull down.
    """
    steps = _known(steps, "pull_up")
    if steps["label"].nunique() > style.MANY:
        title = f"Pulls up (solid) and down (dashed), rolling mean of {SMOOTHING} steps within a stage"
        heading = ("pull on the logit of the teacher's first choice", title)
        return draw_training_panels(steps, {UP[0]: "-", DOWN[0]: "--"}, heading, symlog=1e-3)
    looks, groups = _colours(steps), _groups(steps)
    figure = Figure(figsize=(11, 4.8 * len(groups) + 0.6), layout="constrained")
    for (above, below), (name, rows) in _panels(figure, groups):
        _panel(above, rows, looks, (UP,))
        _panel(below, rows, looks, (DOWN,), named=False)
        above.set(ylabel="pull up, mean\nover all tokens")
        above.set_title(name, pad=18 * bool(name))
        below.set(xlabel="training step, stages in order", ylabel="pull down, mean\nover all tokens")
    title = f"Pulls on the logit of the teacher's first choice, rolling mean of {SMOOTHING} steps within a stage"
    legend_above(figure, _with_lines(looks, (UP, DOWN)), title)
    return figure


@style.styled()
def draw_agreement(steps: pd.DataFrame) -> Figure:
    """Return the overlap of the two top K, and the mass that student and teacher give the teacher's top K, over training."""
    steps = _known(steps, "overlap")
    if steps["label"].nunique() > style.MANY:
        title = f"Overlap (solid), mass of student (dashed) and teacher (dotted), rolling mean of {SMOOTHING} steps"
        dashes = {"overlap": "-", STUDENT[0]: "--", TEACHER[0]: ":"}
        return draw_training_panels(steps, dashes, ("on the teacher's top K (%)", title), 100)
    named = _with_k(steps)
    looks = {named[label]: look | {"label": named[label]} for label, look in _colours(steps).items()}
    steps = steps.assign(label=steps["label"].map(named))
    groups = _groups(steps)
    figure = Figure(figsize=(11, 5.2 * len(groups) + 0.6), layout="constrained")
    for (above, below), (name, rows) in _panels(figure, groups):
        _panel(above, rows, looks, (("overlap", "-", ""),), 100)
        _panel(below, rows, looks, (STUDENT, TEACHER), 100, named=False)
        above.set(ylabel="teacher's top K that are\nthe student's too (%)")
        above.set_title(name, pad=18 * bool(name))
        below.set(xlabel="training step, stages in order", ylabel="probability of the\nteacher's top K (%)")
    title = f"Agreement with the teacher, rolling mean of {SMOOTHING} steps within a stage"
    legend_above(figure, _with_lines(looks, (STUDENT, TEACHER)), title)
    return figure


def _known(steps: pd.DataFrame, field: str) -> pd.DataFrame:
    known = steps.dropna(subset=field)
    if known.empty:
        raise RunError(f"No training step has recorded `{field}`; methods with a teacher record it.")
    return known


def _with_k(steps: pd.DataFrame) -> dict[str, str]:
    """Name each label with its K."""
    sizes = {label: sorted(set(column)) for label, column in steps.groupby("label")["top_k"]}
    return {str(label): f"{label} (K = {' or '.join(f'{k:.0f}' for k in found)})" for label, found in sizes.items()}


def _panels(figure: Figure, groups: dict[str, pd.DataFrame]) -> Iterator[tuple[Any, tuple[str, pd.DataFrame]]]:
    """Yield two axes, one above the other, with each group."""
    axes = figure.subplots(2 * len(groups), squeeze=False).reshape(len(groups), 2)
    for upper, _ in axes:
        upper.tick_params(labelbottom=False)
    yield from zip(axes, groups.items(), strict=True)


def _groups(steps: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the steps of each suite, order and start under a title, which is empty where there is only one."""
    found = list(steps.groupby(["suite", "order", "start"], sort=False))
    return {", ".join(map(str, keys)) * (len(found) > 1): rows for keys, rows in found}


def _colours(steps: pd.DataFrame) -> Looks:
    """Give each label its colour and, where several share one, a marker: dashes say which of two lines it is."""
    looks = looks_of(steps)
    shared = {
        label: [other["color"] for other in looks.values()].count(look["color"]) > 1 for label, look in looks.items()
    }
    return {
        label: {**look, "linestyle": "-", "marker": look["marker"] if shared[label] else None, "markersize": 4}
        for label, look in looks.items()
    }


def _panel(
    axes: Axes, steps: pd.DataFrame, looks: Looks, lines: Lines, scale: float = 1, *, named: bool = True
) -> None:
    """Draw a line per label and field, with the range of seeds; `lines` holds fields, dashes and names for the legend.

    With a `scale` of 100 the values are percentages.
    """
    for field, dashes, _ in lines:
        for label, line in smooth(steps, field).groupby("label", sort=False):
            look = {**looks[str(label)], "linestyle": dashes, "markevery": 0.1}
            line_with_band(axes, line["global_step"], line, look, scale)
    mark_stages(axes, steps, named=named)
    if scale == 1:
        axes.axhline(0, color=style.RULE, linewidth=0.8)
    else:
        axes.set_ylim(top=min(100.5, axes.get_ylim()[1]))


def _with_lines(looks: Looks, lines: Lines) -> Looks:
    """Add an entry for each kind of line, solid or dashed, to a legend's entries."""
    return looks | {called: {"color": style.RULE, "linestyle": dashes, "label": called} for _, dashes, called in lines}
