"""Which metric of a task is its score, and how an item's value of it becomes a number in 0..1 where higher is better.

Gains, forgetting and intervals are differences of scores, so for every score higher must be better. A metric whose
mean over items is the task's figure is the score as it is. A perplexity, which no mean over items gives and where lower
is better, is scored by its reciprocal: the geometric mean of the probabilities that the model gave the tokens, words or
bytes of an item. Any other metric where lower is better is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean

from harness.rundir.records.cell_records import PERPLEXITIES

NUMBERS = (int, float, np.number, np.bool_)


def default_metric(task: Any) -> str:
    """Return the first listed metric that is a mean over items with higher better, else a perplexity, else the first.

    `task` is lm-eval's; hellaswag's is acc, lambada's acc although perplexity stands first, wikitext's word_perplexity.
    """
    listed = list(task.higher_is_better())
    plain = (name for name in listed if task.higher_is_better()[name] and task.aggregation().get(name) is mean)
    perplexities = (name for name in listed if name in PERPLEXITIES)
    return next(plain, None) or next(perplexities, None) or listed[0]


def can_be_score(higher_is_better: Mapping[str, bool]) -> list[str]:
    """Return the metrics that can be a task's score: those with higher better, and perplexities by their reciprocal."""
    return [name for name, higher in higher_is_better.items() if higher or name in PERPLEXITIES]


def item_value(task: Any, metric: str, found: Any) -> float | None:
    """Return one item's value of a metric in the metric's own unit, or None where it has none.

    A perplexity's is that of the single item, a list's (one entry for each instruction of an IFEval item) is its mean;
    pairs of gold and prediction, as F1 collects them, have a value over all items only.
    """
    if metric in PERPLEXITIES:
        return float(task.aggregation()[metric]([found]))
    if isinstance(found, NUMBERS):
        return float(found)
    if isinstance(found, list) and found and all(isinstance(part, NUMBERS) for part in found):
        return float(np.mean(found))
    return None


def score_of(metric: str, value: float) -> float:
    """Return the score of an item's value: 1 / perplexity, 2^-bits, or the value itself."""
    if metric == "bits_per_byte":
        return 2.0**-value
    return 1 / value if metric in PERPLEXITIES else value


def has_outcome(metric: str) -> bool:
    """Whether an item can be right or wrong under a metric; a perplexity is neither."""
    return metric not in PERPLEXITIES


def aggregates(task: Any, grades: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return, by lm-eval's own aggregation, the figures that no mean over items gives: perplexities, F1, BLEU.

    `grades` are the items' results of `process_results`, one mapping each.
    """
    rows = list(grades)
    found: dict[str, float] = {}
    for metric, aggregate in task.aggregation().items():
        values: Sequence[Any] = [row[metric] for row in rows if metric in row]
        if aggregate is mean or not values:
            continue
        if isinstance(value := aggregate(values), NUMBERS) and not math.isnan(float(value)):
            found[metric] = float(value)
    return found
