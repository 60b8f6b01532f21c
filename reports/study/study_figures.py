"""A study's figures: learning against forgetting, training over steps, and AOPD's threshold.

Each function takes the results and returns a labelled matplotlib Figure, or raises RunError where the study has no such
runs. Bars and bands run from the lowest to the highest seed, as in the report; intervals are in the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from harness.config.suite import JOINT
from harness.errors import RunError
from reports.figures import style
from reports.figures.curves import Looks, smoothed
from reports.study.data import AOPD, OPD, Config, Results

FRONTIER = ("forgetting_chaudhry", "learning_accuracy")
STEPS = {
    "entropy": "entropy\n(nats per answer token)",
    "routed_fkl": "tokens routed to\nforward KL (%)",
    "truncated_share": "answers cut off at\nthe length limit (%)",
}
AGAINST_THRESHOLD = {
    "learning_accuracy": "learning accuracy (%)",
    "forgetting_chaudhry": "forgetting, Chaudhry (points)",
    "entropy": "mean entropy in training (nats)",
    "routed_share": "tokens routed to forward KL (%)",
}


@style.styled()
def frontier(results: Results) -> Figure:
    """Return learning accuracy against Chaudhry's forgetting: a line per method and start through its learning rates."""
    methods = results.methods
    if results.many:
        raise RunError(f"A legend cannot name {len(methods)} methods.")
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots()
    handles: list[Line2D] = []
    for start in results.starts:
        for method, marker in zip(methods, cycle(style.MARKERS), strict=False):
            colour = style.colours(methods)[method]
            own = start == results.starts[0]
            look: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": colour if own else "white"}
            label = f"{method}, {start} start" if start else method
            if _frontier_line(axes, results, start, method, look):
                handles.append(Line2D([], [], linestyle="-", label=label, **look))
    if not handles:
        raise RunError("No run of the study has both learning accuracy and forgetting; expected at least two stages.")
    handles += list(_joint_lines(axes, results))
    axes.set(xlabel="forgetting, Chaudhry (points; less is better, to the left)", ylabel="learning accuracy (%)")
    axes.set_title("Learning against forgetting; numbers: learning rates")
    axes.grid(visible=True, axis="both")
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _frontier_line(axes: Axes, results: Results, start: str, method: str, look: dict[str, Any]) -> bool:
    """Draw one method's learning rates from one start, each with the range of its seeds; return whether it has any."""
    rates = list(results.rates(start, method).items())
    ends = [[100 * results.series(config, name) for name in FRONTIER] for _, config in rates]
    drawn = [(rate, x, y) for (rate, _), (x, y) in zip(rates, ends, strict=True) if x.notna().any()]
    for _, x, y in drawn:
        axes.hlines(y.mean(), x.min(), x.max(), color=look["color"], alpha=0.35, linewidth=1.2)
        axes.vlines(x.mean(), y.min(), y.max(), color=look["color"], alpha=0.35, linewidth=1.2)
    axes.plot([x.mean() for _, x, _ in drawn], [y.mean() for _, _, y in drawn], linewidth=1.4, markersize=7, **look)
    for rate, x, y in drawn if len(drawn) > 1 else []:
        _name_rate(axes, rate, (x.mean(), y.mean()), look["color"], below=method == OPD)
    return bool(drawn)


def _name_rate(axes: Axes, rate: float, place: tuple[float, float], colour: str, *, below: bool) -> None:
    """Write a learning rate beside its mark, on a white halo: to the lower left or to the upper right."""
    text = axes.annotate(
        f"{rate:g}",
        place,
        (-7, -7) if below else (7, 7),
        textcoords="offset points",
        ha="right" if below else "left",
        va="top" if below else "bottom",
        fontsize=8,
        color=colour,
        zorder=5,
    )
    text.set_path_effects([withStroke(linewidth=3, foreground=style.HALO)])


def _joint_lines(axes: Axes, results: Results) -> Iterator[Line2D]:
    """Draw each method's average accuracy when one stage trains all tasks, and yield the line's key."""
    for method in (OPD, AOPD):
        joint = results.mean(Config(results.plan.base.name, method, JOINT), "average_accuracy")
        if joint.seeds:
            look: dict[str, Any] = {"color": style.KNOWN[method], "linestyle": ":", "linewidth": 1.6}
            axes.axhline(100 * joint.mean, **look)
            yield Line2D([], [], label=f"{method}, all tasks jointly", **look)


@style.styled()
def training(results: Results) -> Figure:
    """Return entropy, routed share and truncation over training, OPD and AOPD, one column per start."""
    columns = _steps_by_start(results)
    if not columns:
        raise RunError("No finished run of opd or aopd has training steps.")
    figure = Figure(figsize=(4.2 * len(columns) + 1.6, 7.2), layout="constrained")
    grid = figure.subplots(len(STEPS), len(columns), sharex="col", sharey="row", squeeze=False)
    looks: Looks = {method: {"color": style.KNOWN[method], "label": method} for method in (OPD, AOPD)}
    for column, (start, rows) in enumerate(columns.items()):
        for axes, field in zip(grid[:, column], STEPS, strict=True):
            _steps_panel(axes, rows.assign(label=rows["adapter"]), field, looks, named=field == "entropy")
        grid[-1, column].set_xlabel(f"training step, {start} start" if start else "training step")
    for axes, title in zip(grid[:, 0], STEPS.values(), strict=True):
        axes.set_ylabel(title)
    figure.legend(handles=[Line2D([], [], **look) for look in looks.values()], loc="outside upper left", ncols=2)
    return figure


def _steps_by_start(results: Results) -> dict[str, pd.DataFrame]:
    """Return OPD's and AOPD's steps at the suite's own learning rate, by start; starts without any are left out."""
    steps = results.frames.steps
    configs = pd.MultiIndex.from_frame(steps[[*Config._fields]])
    found = {s: steps[configs.isin([results.own(s, method) for method in (OPD, AOPD)])] for s in results.starts}
    return {start: rows for start, rows in found.items() if not rows.empty}


def _steps_panel(axes: Axes, steps: pd.DataFrame, field: str, looks: Looks, *, named: bool) -> None:
    """Draw a field over training, a line per label that is broken where a stage ends, with the range of seeds."""
    scale = 1 if field == "entropy" else 100
    for (label, _), line in smoothed(steps.dropna(subset=field), field).groupby(["label", "stage"], sort=False):
        look = looks[str(label)]
        axes.plot(line["global_step"], scale * line["mean"], linewidth=1.4, **look)
        low, high = scale * line["smallest"], scale * line["largest"]
        axes.fill_between(line["global_step"], low, high, color=look["color"], alpha=0.15, linewidth=0)
    _mark_stages(axes, steps, named=named)
    axes.set_xlim(-0.5, steps["global_step"].max() + 0.5)
    axes.set_ylim(0, max(axes.get_ylim()[1], 0.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True)


def _mark_stages(axes: Axes, steps: pd.DataFrame, *, named: bool) -> None:
    """Draw a line where a stage begins, and write the stages' names above."""
    names, top = style.short_names(steps["task"]), axes.get_xaxis_transform()
    for task, ends in steps.groupby("task")["global_step"].agg(["min", "max"]).iterrows():
        if ends["min"]:
            axes.axvline(ends["min"] - 0.5, color=style.RULE, linewidth=0.8)
        if named:
            axes.text(ends.mean(), 1.02, names[str(task)], transform=top, ha="center", va="bottom", fontsize=9)


@style.styled()
def threshold(results: Results) -> Figure:
    """Return learning, forgetting, entropy and routed share against AOPD's threshold, its two limits marked."""
    configs = _thresholds(results)
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2, sharex=True).flat, AGAINST_THRESHOLD, strict=True):
        _threshold_panel(axes, results, configs, name)
    for axes in figure.axes[-2:]:
        axes.set_xticks(list(configs), [_limit(tau) for tau in configs])
        axes.set_xlabel("threshold τ (forward KL where q − p > τ)")
    handles = [
        Line2D([], [], color=style.KNOWN[AOPD], marker="s", label="aopd, gate q − p > τ"),
        Line2D([], [], color=style.KNOWN[AOPD], linestyle="--", label="aopd as in the suite"),
        Line2D([], [], color=style.KNOWN[OPD], linestyle="--", label="opd"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _threshold_panel(axes: Axes, results: Results, configs: dict[float, Config], name: str) -> None:
    """Draw one figure against the threshold, with the range of seeds and OPD's and AOPD's own level over these seeds."""
    scale = 1 if name == "entropy" else 100
    by_seed = pd.DataFrame({tau: scale * results.series(config, name) for tau, config in configs.items()})
    axes.plot(by_seed.columns, by_seed.mean(), "-s", color=style.KNOWN[AOPD])
    axes.vlines(by_seed.columns, by_seed.min(), by_seed.max(), color=style.KNOWN[AOPD], alpha=0.4)
    for method in (OPD, AOPD):
        own = results.series(Config(results.plan.base.name, method), name).reindex(by_seed.index)
        if own.notna().any():
            axes.axhline(scale * own.mean(), color=style.KNOWN[method], linestyle="--", linewidth=1.2, alpha=0.8)
    axes.set(title=AGAINST_THRESHOLD[name], xlim=(min(configs) - 0.25, max(configs) + 0.25))
    axes.margins(y=0.15)
    axes.grid(visible=True)


def _thresholds(results: Results) -> dict[float, Config]:
    if not results.thresholds:
        raise RunError("The study has no finished run that varies AOPD's threshold.")
    return results.thresholds


def _limit(tau: float) -> str:
    return {-1.0: "−1\npure FKL", 1.0: "1\npure OPD"}.get(tau, f"{tau:g}")


@style.styled()
def threshold_training(results: Results) -> Figure:
    """Return entropy, routed share and truncation over training, a line per threshold from light to dark."""
    configs = _thresholds(results)
    steps = results.frames.steps
    shades = style.shades(len(configs))
    names = {config: f"τ = {tau:g}".replace("-", "−") for tau, config in configs.items()}
    looks: Looks = {name: {"color": shade, "label": name} for name, shade in zip(names.values(), shades, strict=True)}
    configs_of = map(Config._make, steps[[*Config._fields]].itertuples(index=False, name=None))
    rows = steps.assign(label=pd.Series([names.get(config) for config in configs_of], steps.index)).dropna(
        subset="label"
    )
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    for axes, (field, title) in zip(figure.subplots(len(STEPS), 1, sharex=True), STEPS.items(), strict=True):
        _steps_panel(axes, rows, field, looks, named=field == "entropy")
        axes.set_ylabel(title)
    figure.axes[-1].set_xlabel("training step")
    figure.legend(handles=[Line2D([], [], **look) for look in looks.values()], loc="outside upper left", ncols=6)
    return figure
