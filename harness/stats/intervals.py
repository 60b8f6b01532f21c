"""Intervals of a mean: Student's t over seeds, and a cluster-robust t over items.

Seeds and items are two sources of variance: a seed selects start, data order and rollouts, an item is one question that all
seeds and methods answer. Scores are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
# What a quantity of each unit can be: a share, a difference of shares, a ratio of shares, an entropy.
BOUNDS = {"%": (0.0, 1.0), "points": (-1.0, 1.0), "ratio": (0.0, math.inf), "nats": (0.0, math.inf)}
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

    def within(self, low: float, high: float) -> Interval:
        """Return the interval cut at bounds that the quantity cannot leave; what it covers of possible values stays the same.

        Error and degrees of freedom stay, so that p values do.
        """
        return replace(self, low=max(self.low, low), high=min(self.high, high)) if not math.isnan(self.low) else self

    def of_unit(self, unit: str) -> Interval:
        """Return the interval within the bounds of a quantity of a unit, see BOUNDS."""
        return self.within(*BOUNDS[unit])

    def of_difference(self, unit: str) -> Interval:
        """Return the interval within the bounds of a difference of two quantities of a unit."""
        low, high = BOUNDS[unit]
        return self.within(low - high, high - low)

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
    from scipy import stats  # takes a second to import, and a dry run needs no interval

    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    return Interval(mean, mean - half, mean + half, seeds, error, df)


def item_interval(differences: ArrayLike, clusters: Sequence[str] | None = None, level: float = LEVEL) -> Interval:
    """Return the mean over items and its cluster-robust t interval; only items vary, the seed is fixed.

    The variance of the mean is `G / (G - 1) sum_c u_c^2` with `u_c = sum_{i in c} (x_i - mean) / n` over G clusters (Liang and
    Zeger 1986). The degrees of freedom are those of `effective_clusters`, so few or unequal clusters widen the interval.
    Without `clusters` each item is its own, and this is Student's t over items. Values that are all equal have no width.
    """
    values = np.asarray(differences, dtype=np.float64).ravel()
    known = ~np.isnan(values)
    names = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    values, names = values[known], names[known]
    sizes = np.bincount(names)[np.unique(names)]
    if len(sizes) < 2:
        return Interval(float(values.mean()) if len(values) else math.nan, math.nan, math.nan, 1)
    mean, groups = float(values.mean()), len(sizes)
    shares = np.bincount(names, values - mean) / len(values)
    error = math.sqrt(groups / (groups - 1) * float((shares**2).sum()))
    return interval_from(mean, error if error > ROUNDING else 0.0, effective_clusters(sizes) - 1, 1, level)


def effective_clusters(sizes: ArrayLike) -> float:
    """Return `(sum n_c)^2 / sum n_c^2`: the number of equal clusters that vary as much as clusters of these sizes."""
    counts = np.asarray(sizes, dtype=np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


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
