"""A mean with its confidence interval, and Student's t interval over seeds.

A seed selects start, data order and rollouts. `harness.stats.two_way` adds the second source of variance, the items. Scores
are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Vector = NDArray[np.float64]
LEVEL = 0.95  # of confidence
# The possible values of each unit: a share, a difference of shares, a ratio of shares, an entropy, any number.
BOUNDS = {
    "%": (0.0, 1.0),
    "points": (-1.0, 1.0),
    "ratio": (0.0, math.inf),
    "nats": (0.0, math.inf),
    "number": (-math.inf, math.inf),
}
ROUNDING = 1e-9  # a smaller width is floating-point error: the values are equal


class StandardError(NamedTuple):
    """A mean's standard error, and the degrees of freedom of its t distribution."""

    error: float
    df: float


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; `low` and `high` are nan where the data give no interval.

    `seeds` is the number of seeds behind the mean, 0 if there is no value. Of several standard errors each gives an interval,
    and at each level the widest one counts; there is none where it is not known.
    """

    mean: float
    low: float
    high: float
    seeds: int
    errors: tuple[StandardError, ...] = ()

    @property
    def half_width(self) -> float:
        """Half the distance between `low` and `high`."""
        return (self.high - self.low) / 2

    def within(self, low: float, high: float) -> Interval:
        """Return the interval cut at the bounds of possible values, which does not change its coverage.

        Its standard errors stay as they are, and so do p values.
        """
        return replace(self, low=max(self.low, low), high=min(self.high, high)) if not math.isnan(self.low) else self

    def of_unit(self, unit: str) -> Interval:
        """Return the interval within the bounds of a quantity of a unit, see BOUNDS."""
        return self.within(*BOUNDS[unit])

    def of_difference(self, unit: str) -> Interval:
        """Return the interval within the bounds of a difference of two quantities of a unit."""
        low, high = BOUNDS[unit]
        return self.within(low - high, high - low)

    def widened(self, factor: float) -> Interval:
        """Return the interval with its standard errors times a factor."""
        low, high = (self.mean + factor * (end - self.mean) for end in (self.low, self.high))
        errors = tuple(StandardError(factor * each.error, each.df) for each in self.errors)
        return replace(self, low=low, high=high, errors=errors)

    def beyond(self, smallest: float, sign: int = 1) -> Interval:
        """Return the interval of `sign * mean - smallest`: by how much an effect exceeds the smallest one that is claimed."""
        low, high = (self.low, self.high) if sign > 0 else (-self.high, -self.low)
        return Interval(sign * self.mean - smallest, low - smallest, high - smallest, self.seeds, self.errors)


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def t_interval(values: ArrayLike | Mapping[int, float], level: float = LEVEL) -> Interval:
    """Return the mean and Student's t interval, `mean ± t_{(1+level)/2, n-1} s / sqrt(n)`, of the values that are not nan."""
    known = known_values(list(values.values()) if isinstance(values, Mapping) else values)
    n = len(known)
    if n < 2:
        return Interval(float(known[0]) if n else math.nan, math.nan, math.nan, n)
    return interval_from(float(known.mean()), float(known.std(ddof=1) / np.sqrt(n)), n - 1, n, level)


def interval_from(
    mean: float, error: float, df: float, seeds: int, level: float = LEVEL, *, least: StandardError | None = None
) -> Interval:
    """Return the t interval of a mean with a standard error on some degrees of freedom, no narrower than that of `least`."""
    errors = (StandardError(error, df), *([least] if least else []))
    half = max(float(special.stdtrit(each.df, (1 + level) / 2)) * each.error for each in errors)
    return Interval(mean, mean - half, mean + half, seeds, errors)


def effective_clusters(sizes: ArrayLike) -> float:
    """Return `(sum n_c)^2 / sum n_c^2`: the number of clusters of equal size that would vary as much as these sizes."""
    counts = np.asarray(sizes, dtype=np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


def has_width(interval: Interval, seeds: int = 2) -> bool:
    """Return whether an interval is over at least `seeds` seeds and wider than ROUNDING."""
    return interval.seeds >= seeds and interval.high - interval.low > ROUNDING


def resolved(interval: Interval, seeds: int = 2) -> bool:
    """Return whether an interval over at least `seeds` seeds has a width and excludes zero."""
    return has_width(interval, seeds) and (interval.low > 0 or interval.high < 0)


def reverses(one: Interval, other: Interval, seeds: int = 2) -> bool:
    """Return whether two means have opposite signs and at least one of the intervals is resolved."""
    return one.mean * other.mean < 0 and (resolved(one, seeds) or resolved(other, seeds))


def known_values(values: ArrayLike) -> Vector:
    """Return the values that are not nan, as one vector."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]
