"""Choose the metric that is a task's score, and convert an item's value of it to 0..1, where higher is better.

Gains, forgetting and intervals are differences of scores, so higher must be better. A metric that is a mean over items is used
as it is. A perplexity, which is not such a mean and where lower is better, is scored by its reciprocal: the geometric mean of
the probabilities that the model gives the tokens, words or bytes of an item. Any other metric where lower is better is
refused.
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
    """Return the first listed metric that is a mean over items with higher better, else a perplexity, else the first metric.

    `task` is lm-eval's. hellaswag gets acc, lambada acc although it lists perplexity first, wikitext word_perplexity.
    """
    listed = list(task.higher_is_better())
    plain = (name for name in listed if task.higher_is_better()[name] and task.aggregation().get(name) is mean)
    perplexities = (name for name in listed if name in PERPLEXITIES)
    return next(plain, None) or next(perplexities, None) or listed[0]


def can_be_score(higher_is_better: Mapping[str, bool]) -> list[str]:
    """Return the metrics that can be a task's score: those with higher better, and perplexities by their reciprocal."""
    return [name for name, higher in higher_is_better.items() if higher or name in PERPLEXITIES]


def item_value(task: Any, metric: str, found: Any) -> float | None:
    """Return one item's value of a metric in the metric's own unit, or None where one item has no value.

    `found` is what the grader returned. A perplexity is computed for the single item. A list, such as one entry for each
    instruction of an IFEval item, is averaged. Pairs of gold and prediction, as F1 collects them, have a value over all items
    only.
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
    """Return the figures that are not means over items, such as perplexities, F1 and BLEU, by lm-eval's own aggregation.

    `grades` are the results of `process_results`, one mapping for each item.
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
