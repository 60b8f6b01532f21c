"""The effects that a sample could have found, and the power of the test over seeds and clusters of items.

The test is that of `harness.stats.two_way`. Its standard errors are functions of three mean squares, which are independent of
the mean and of each other if the data are normal (Searle, Casella and McCulloch 1992, Variance Components, chapter 4). So
its power is an integral over three chi-squared distributions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from harness.stats.intervals import LEVEL, StandardError, Vector
from harness.stats.two_way import POOLED, degrees_of_freedom

POWER = 0.80
FARTHEST = 1e4  # critical t value of a test that finds nothing: its degrees of freedom are nearly 0
NODES = (48, 8, 4)  # points of the integral: mean squares of seeds, of clusters, of the residual


def detectable_effect(errors: Iterable[StandardError]) -> float:
    """Return the smallest effect that a two-sided t test finds with POWER; of several errors, the largest such.

    It is nan where degrees of freedom near 0 leave a test that finds nothing, as with two clusters of very unequal size.
    1 - LEVEL is the test's alpha. The power is that of the noncentral t distribution.
    """
    found = [_detectable(each.error, each.df) for each in errors]
    return math.nan if any(map(math.isnan, found)) else max(found)


def _detectable(error: float, df: float) -> float:
    critical = float(special.stdtrit(df, 1 - (1 - LEVEL) / 2))
    if critical > FARTHEST:
        return math.nan

    def excess(shift: float) -> float:
        return _rejects(shift, df, critical) - POWER

    high = 1.0  # in standard errors
    while excess(high) < 0:
        high *= 1.25
    root: Any = optimize.brentq(excess, 0.0, high)
    return error * float(root)


def _rejects(shift: float, df: float, critical: float) -> float:
    """Return the probability that a two-sided t test rejects beyond ±`critical`, for an effect of `shift` standard errors."""
    below, within = special.nctdtr(df, shift, -critical), special.nctdtr(df, shift, critical)
    # scipy returns nan for probabilities that are practically 0.
    return float(np.nan_to_num(below) + 1 - np.nan_to_num(within))


class MeanSquares(NamedTuple):
    """The expected mean squares of a crossed table of S seeds and C clusters: of seeds, of clusters, of the residual."""

    of_seeds: float
    of_clusters: float
    of_rest: float
    seeds: int
    clusters: int

    @property
    def error(self) -> float:
        """The true standard error of the table's mean."""
        total = self.of_seeds + self.of_clusters - self.of_rest
        return math.sqrt(total / (self.seeds * self.clusters))

    def finds(self, effect: float, alpha: float) -> float:
        """Return the probability that the two-sided test at `alpha` finds a true mean of `effect`."""
        weights, reach = _estimated_errors(self).reach(alpha / 2)
        beyond = special.ndtr((effect - reach) / self.error) + special.ndtr((-effect - reach) / self.error)
        return float(weights @ beyond)

    def shows_equivalence(self, margin: float, effect: float, alpha: float) -> float:
        """Return the probability that a true mean of `effect` is shown to be within ±`margin` and not shown to differ from 0.

        Two one-sided tests at `alpha` show the first (Schuirmann 1987); the second would be another verdict. Without the
        second condition and with seeds alone this is the power of Phillips (1990, J. Pharmacokinet. Biopharm. 18).
        """
        estimated = _estimated_errors(self)
        weights, one_sided = estimated.reach(alpha)
        bound = np.minimum(margin - one_sided, estimated.reach(alpha / 2)[1])
        inside = special.ndtr((bound - effect) / self.error) - special.ndtr((-bound - effect) / self.error)
        return float(weights @ np.where(bound > 0, inside, 0.0))


class EstimatedErrors(NamedTuple):
    """The standard errors that a study may estimate, with their probabilities and degrees of freedom, (N,) each.

    `of_seeds` are those over seeds alone, on `df_seeds`, and 0 where seeds do not vary by the test of
    `VarianceParts.seeds_vary`; the wider of the two intervals counts.
    """

    weights: Vector
    errors: Vector
    df: Vector
    of_seeds: Vector
    df_seeds: int

    def reach(self, tail: float) -> tuple[Vector, Vector]:
        """Return the probabilities and the half-widths of the intervals that leave out `tail` on each side."""
        two_way = self.errors * special.stdtrit(self.df, 1 - tail)
        return self.weights, np.maximum(two_way, self.of_seeds * float(special.stdtrit(self.df_seeds, 1 - tail)))


@lru_cache(maxsize=64)
def _estimated_errors(squares: MeanSquares) -> EstimatedErrors:
    """Return the standard errors that a study may estimate.

    Two cases are integrated: the clusters do not vary by the test of `VarianceParts.clusters_vary`, or they do.
    """
    S, C = squares.seeds, squares.clusters
    df_s, df_c, df_r = S - 1, C - 1, (S - 1) * (C - 1)
    (x_s, w_s), (x_c, w_c), (x_r, w_r) = map(_points, NODES)
    # Probabilities, variances times S C with their degrees of freedom, and variances of seeds alone.
    parts: list[tuple[Vector, ...]] = []
    ms_s = squares.of_seeds * _mean_square(df_s, x_s)
    for rest, weight in zip(squares.of_rest * _mean_square(df_r, x_r), w_r, strict=True):
        limit = float(special.fdtri(df_c, df_r, 1 - POOLED)) * rest / squares.of_clusters if rest > 0 else 0.0
        pooled = float(special.gammainc(df_c / 2, df_c / 2 * limit))
        parts.append((weight * pooled * w_s, ms_s, np.full(len(ms_s), float(df_s)), ms_s * (ms_s > rest)))
        ms_c = squares.of_clusters * _mean_square(df_c, pooled + (1 - pooled) * x_c)
        one, other = (each.ravel() for each in np.meshgrid(ms_s, ms_c, indexing="ij"))
        total = np.maximum(one + other - rest, np.maximum(one, other))
        df = degrees_of_freedom(one, other, np.full(len(one), rest), df_s, df_c)
        parts.append((weight * (1 - pooled) * np.outer(w_s, w_c).ravel(), total, df, one * (one > rest)))
    weights, totals, df, of_seeds = (np.concatenate(column) for column in zip(*parts, strict=True))
    return EstimatedErrors(weights, np.sqrt(totals / (S * C)), df, np.sqrt(of_seeds / (S * C)), df_s)


def _points(number: int) -> tuple[Vector, Vector]:
    """Return the points in 0..1 and the weights of Gauss and Legendre's quadrature."""
    at, weights = np.polynomial.legendre.leggauss(number)
    return (1 + at) / 2, weights / 2


def _mean_square(df: int, quantiles: Vector) -> Vector:
    """Return quantiles of a mean square whose expectation is 1: chi-squared divided by its degrees of freedom."""
    return special.gammaincinv(df / 2, quantiles) * 2 / df
