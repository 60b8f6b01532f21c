"""What training noted in a study, a row per configuration: pulls on the teacher's first choice, and warnings."""

from __future__ import annotations

from collections.abc import Callable

from reports.document.blocks import Grid
from reports.document.sentences import describe_warning, format_interval, format_nats, format_percent, format_pull
from reports.study.data import Config, Results
from reports.study.study_words import by_start

CONFIG = list(Config._fields)
PULLS: dict[str, tuple[str, Callable[[float], str]]] = {
    "pull_up": ("pull up", format_pull),
    "pull_down": ("pull down", format_pull),
    "pull_ratio": ("down / up", format_pull),
    "entropy": ("entropy, nats", format_nats),
    "routed_share": ("routed %", format_percent),
    "fkl_gradient_share": ("forward KL's share of the gradient %", format_percent),
}


def pulls_grid(results: Results) -> Grid:
    """Return the mean pulls, their ratio and what stands beside them; no rows where no run has noted any."""
    rows = []
    for config, setting in results.configs.items():
        means = [results.mean(config, figure) for figure in PULLS]
        if means[0].seeds:
            cells = [
                format_interval(mean, write) if mean.seeds else "–"
                for mean, (_, write) in zip(means, PULLS.values(), strict=True)
            ]
            rows.append([config.adapter, setting, str(means[0].seeds), *cells])
    return _without_empty_settings("Pulls", ["seeds", *(called for called, _ in PULLS.values())], rows)


def pulls_sentence(results: Results) -> str:
    """Return per start the paired difference of the pulls' ratio, AOPD minus OPD; empty where there is none."""
    return by_start(results, "pull_ratio", "Down / up", _more)


def warnings_grid(results: Results) -> Grid:
    """Return for each configuration that raised any warning in how many of its stages each kind was raised."""
    raised = results.frames.warnings
    kinds = _kinds(results)
    stages = results.frames.steps.drop_duplicates([*CONFIG, "seed", "stage"]).groupby(CONFIG).size()
    once = raised.drop_duplicates([*CONFIG, "seed", "stage", "warning"])
    counts = once.groupby([*CONFIG, "warning"]).size()
    rows = []
    for config, setting in results.configs.items():
        found = [int(counts.get((*config, kind), 0)) for kind in kinds]
        if any(found):
            rows.append([config.adapter, setting, str(stages[tuple(config)]), *(str(count or "–") for count in found)])
    return _without_empty_settings("Warnings in training", ["stages trained", *kinds], rows)


def warnings_meaning(results: Results) -> list[str]:
    """Return the kinds of warnings that were raised, in words."""
    return [describe_warning(kind) for kind in _kinds(results)]


def _kinds(results: Results) -> list[str]:
    return sorted(set(results.frames.warnings["warning"]))


def _more(change: float) -> str:
    return f"{change:+.4f}".replace("-", "−")


def _without_empty_settings(title: str, header: list[str], rows: list[list[str]]) -> Grid:
    """Return rows of method, setting and more as a grid; the setting's column is left out where all are empty."""
    if any(row[1] for row in rows):
        return Grid(title, ["method", "setting", *header], [[row[0], row[1] or "own", *row[2:]] for row in rows])
    return Grid(title, ["method", *header], [[row[0], *row[2:]] for row in rows])
