"""Intervals of a mean: Student's t over seeds, and a bootstrap over items.

Seeds and items are two sources of variance: a seed selects start, data order and rollouts, an item is one question that all
seeds and methods answer. Scores are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
ROUNDING = 1e-9  # a smaller width comes from adding floats: the values are equal


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; `low` and `high` are nan where nothing says how sure the mean is.

    `seeds` is the number of seeds behind the mean, 0 where there is no value. `error` is the mean's standard error and `df`
    the degrees of freedom of its t distribution; both are nan for an interval that has none.
    """

    mean: float
    low: float
    high: float
    seeds: int
    error: float = math.nan
    df: float = math.nan

    @property
    def half_width(self) -> float:
        """Half the distance between the bounds."""
        return (self.high - self.low) / 2

    def beyond(self, smallest: float, sign: int = 1) -> Interval:
        """Return the interval of `sign * mean - smallest`: what an effect claimed in a direction exceeds its minimum by."""
        low, high = (self.low, self.high) if sign > 0 else (-self.high, -self.low)
        return Interval(sign * self.mean - smallest, low - smallest, high - smallest, self.seeds, self.error, self.df)


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def t_interval(values: ArrayLike | Mapping[int, float], level: float = LEVEL) -> Interval:
    """Return the mean and Student's t interval, `mean ± t_{(1+level)/2, n-1} s / sqrt(n)`, of the values that are not nan."""
    known = known_values(list(values.values()) if isinstance(values, Mapping) else values)
    n = len(known)
    if n < 2:
        return Interval(float(known[0]) if n else math.nan, math.nan, math.nan, n)
    return interval_from(float(known.mean()), float(known.std(ddof=1) / np.sqrt(n)), n - 1, n, level)


def interval_from(mean: float, error: float, df: float, seeds: int, level: float = LEVEL) -> Interval:
    """Return the t interval of a mean with a standard error on some degrees of freedom."""
    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    return Interval(mean, mean - half, mean + half, seeds, error, df)


def item_interval(differences: ArrayLike, seed: int = 0, resamples: int = 9999, level: float = LEVEL) -> Interval:
    """Return the mean over items and its BCa bootstrap interval (Efron 1987); items alone vary, the seed is given.

    Differences that are all equal have an interval without width.
    """
    known = known_values(differences)
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else math.nan, math.nan, math.nan, 1)
    mean = float(known.mean())
    if np.ptp(known) <= ROUNDING:
        return Interval(mean, mean, mean, 1)
    generator = np.random.default_rng(seed)
    result = stats.bootstrap(
        (known,), np.mean, n_resamples=resamples, confidence_level=level, method="BCa", rng=generator, batch=1000
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), 1)


def has_width(interval: Interval, seeds: int = 2) -> bool:
    """Return whether an interval covers at least so many seeds and is wider than rounding."""
    return interval.seeds >= seeds and interval.high - interval.low > ROUNDING


def resolved(interval: Interval, seeds: int = 2) -> bool:
    """Return whether such an interval excludes zero."""
    return has_width(interval, seeds) and (interval.low > 0 or interval.high < 0)


def known_values(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values that are not nan, as one vector."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]
