"""The metrics that claims can name: by run, of one task, and of training, each a value per seed of one method."""

from __future__ import annotations

import math

import pandas as pd

from harness.stats.continual import FIGURES
from reports.data.methods import Method
from reports.data.paired_cells import RunScores, Term
from reports.data.tables import score_matrices

PER_TASK = {
    "before": "R[0][j]",
    "learned": "R[j][j]",
    "gained": "R[j][j] − R[j−1][j]",
    "final": "R[T][j]",
    "retained": "R[T][j] − R[j][j], earlier tasks alone",
    "changed": "R[T][j] − R[0][j]",
}
TRAINING = {
    "entropy": "mean entropy over training steps, nats per token; methods that train on their own answers",
    "entropy_last": "the same over the last stage",
    "routed_fkl": "share of tokens that took forward KL",
    "truncated_share": "share of training answers cut off at the length limit",
}
# Intransigence is measured against a joint run, which is of another order than the methods that a claim compares.
RUN = {name: figure.formula for name, figure in FIGURES.items() if name != "intransigence"}
METRICS = {**PER_TASK, **TRAINING, **RUN}
UNIT_OF = {
    **dict.fromkeys([*PER_TASK, *TRAINING], "points"),
    **dict.fromkeys(["entropy", "entropy_last"], "nats"),
    **{name: "ratio" if FIGURES[name].unit == "ratio" else "points" for name in RUN},
}


def metric_series(method: Method, name: str, task: str = "", stage: int | None = None) -> pd.Series:
    """Return a metric by seed as if `stage` were the last; nan where a run has no such cell, empty where nothing has it."""
    last = len(method.first.stages) if stage is None else min(stage, len(method.first.stages))
    if name in TRAINING:
        return _training(method, name, last)
    if name in PER_TASK:
        values = {seed: _of_task(method, found, name, task, last) for seed, found in method.by_seed.items()}
        return pd.Series(values, dtype=float)
    return _figure(method, name, last)


def _training(method: Method, name: str, last: int) -> pd.Series:
    if not method.on_policy:
        return pd.Series(dtype=float)
    if name != "entropy_last":
        return method.training(name, last)
    steps = method.frames.steps
    return steps[steps["stage"] == last].groupby("seed")["entropy"].mean().dropna()


def _of_task(method: Method, found: RunScores, name: str, task: str, last: int) -> float:
    own = method.stage_of.get(task, last + 1)
    if task not in method.tasks or (name in ("learned", "gained", "retained") and own > last):
        return math.nan
    if name == "retained" and own == last:
        return math.nan
    terms = {
        "before": Term(task, 0),
        "learned": Term(task, own),
        "gained": Term(task, own, own - 1),
        "final": Term(task, last),
        "retained": Term(task, last, own),
        "changed": Term(task, last, 0),
    }
    return found.score(terms[name])


def _figure(method: Method, name: str, last: int) -> pd.Series:
    scores = method.frames.scores
    scores = scores[scores["stage"] <= last]
    trained = [task for task, own in method.stage_of.items() if own <= last]
    scores = scores.assign(role=scores["role"].where(scores["task"].isin(trained), "probe"))
    return pd.Series(
        {identity["seed"]: FIGURES[name].compute(matrix) for identity, matrix in score_matrices(scores)}, dtype=float
    )
