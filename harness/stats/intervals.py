"""Paired statistics of evaluations: intervals over seeds and over items, flips, tests, and what a sample could have shown.

Seeds and items are two sources of variance and stay apart: a seed selects start, data order and rollouts, an item is one
question that all seeds and methods answer. Everything here is pure; scores are in 0..1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """Mean over seeds with its confidence interval; `low` and `high` are nan for a single seed."""

    mean: float
    low: float
    high: float
    seeds: int


def t_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the mean and Student's t interval, `mean ± t_{(1+level)/2, n-1} s / sqrt(n)`, of the values not nan."""
    known = _known(values)
    n = len(known)
    if n < 2:
        return Interval(float(known[0]) if n else math.nan, math.nan, math.nan, n)
    mean, error = float(known.mean()), float(known.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n)


def item_interval(differences: ArrayLike, seed: int = 0, resamples: int = 9999, level: float = LEVEL) -> Interval:
    """Return the mean over items and its BCa bootstrap interval (Efron 1987); items alone vary, the seed is given.

    Differences that are all alike have an interval without width.
    """
    known = _known(differences)
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else math.nan, math.nan, math.nan, 1)
    mean = float(known.mean())
    if np.ptp(known) == 0:
        return Interval(mean, mean, mean, 1)
    generator = np.random.default_rng(seed)
    found = stats.bootstrap(
        (known,), np.mean, n_resamples=resamples, confidence_level=level, method="BCa", rng=generator, batch=1000
    )
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), 1)


def _known(values: ArrayLike) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]
