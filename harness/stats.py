"""Paired statistics of evaluations: intervals over seeds and over items, flips, tests, and what a sample could have shown.

Seeds and items are two sources of variance and stay apart: a seed selects start, data order and rollouts, an item is one
question that all seeds and methods answer. Everything here is pure; scores are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.80


class Interval(NamedTuple):
    """Mean over seeds with its confidence interval; `low` and `high` are nan for a single seed."""

    mean: float
    low: float
    high: float
    seeds: int


class Flips(NamedTuple):
    """Items whose answer turned from right to wrong (`lost`) or from wrong to right (`gained`), of `items` compared."""

    lost: int
    gained: int
    items: int

    @property
    def p_value(self) -> float:
        """McNemar's exact test: two-sided binomial of the lost among all that turned, 1 where none did (McNemar 1947)."""
        turned = self.lost + self.gained
        return float(stats.binomtest(self.lost, turned).pvalue) if turned else 1.0


class Variances(NamedTuple):
    """The variance of a mean paired difference by its source; a difference over one seed has items alone.

    `items` is the mean over seeds of s_item^2 / N. `seeds`, of one seed and not of their mean, is what the seeds' means vary
    beyond their noise: max(0, s_mean^2 - r / N) with r the mean square that is left of d_si - d_s - d_i + d, on (S-1)(N-1)
    degrees of freedom (two-way analysis of variance). Every seed is asked the same items, so an item that changes alike for
    all seeds moves all means together and is no noise between them.
    """

    items: float
    seeds: float


def t_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the mean and Student's t interval, `mean ± t_{(1+level)/2, n-1} s / sqrt(n)`, of the values not nan."""
    known = _known(values)
    n = len(known)
    if n < 2:
        return Interval(float(known[0]) if n else math.nan, math.nan, math.nan, n)
    mean, error = float(known.mean()), float(known.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n)


def p_value(difference: Interval, level: float = LEVEL) -> float:
    """Return the two-sided p value of the t test behind a t interval; nan where it has no width."""
    mean, low, high, seeds = difference
    if not high > low:
        return math.nan
    error = (high - low) / 2 / stats.t.ppf((1 + level) / 2, seeds - 1)
    return float(2 * stats.t.sf(abs(mean) / error, seeds - 1))


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


def flips(before: pd.Series, after: pd.Series) -> Flips:
    """Count items lost and gained between two evaluations, scores indexed by item; right is a score of 1.

    An item without a score (nan) in either is neither right nor wrong, and not counted.
    Raises `ValueError` where the items are not the same, because a paired figure over other items is no figure.
    """
    left, right = _paired(before, after)
    known = left.notna() & right.notna()
    left, right = left[known], right[known]
    was, is_ = left >= 1, right >= 1
    return Flips(int((was & ~is_).sum()), int((~was & is_).sum()), len(left))


def differences(before: pd.Series, after: pd.Series) -> pd.Series:
    """Return after minus before, item by item; raises `ValueError` where the items are not the same."""
    left, right = _paired(before, after)
    return right - left


def variances(by_seed: Sequence[ArrayLike]) -> Variances:
    """Return the variance of per-item differences by its source, one array per seed of the same items; nan for a single item.

    An item without a score (nan) for some seed is left out; raises `ValueError` for arrays of several lengths.
    """
    table = np.stack([np.asarray(values, dtype=np.float64).ravel() for values in by_seed])
    table = table[:, ~np.isnan(table).any(axis=0)]
    seeds, items = table.shape
    if items < 2:
        return Variances(math.nan, math.nan)
    within = float(table.var(axis=1, ddof=1).mean() / items)
    if seeds < 2:
        return Variances(within, math.nan)
    means = table.mean(axis=1)
    left = table - means[:, None] - table.mean(axis=0) + table.mean()
    noise = float((left**2).sum() / ((seeds - 1) * (items - 1)) / items)
    return Variances(within, max(0.0, float(means.var(ddof=1)) - noise))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down p values, `max_{k<=i} min(1, (m-k+1) p_(k))`; a nan stays one and does not count in m."""
    known = pd.Series(p_values, dtype=float).dropna().sort_values()
    steps = known * np.arange(len(known), 0, -1)
    return list(steps.cummax().clip(upper=1).reindex(range(len(p_values))))


def detectable(spread: float, n: int, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest mean difference that a paired t test over n values finds with the given power.

    `spread` is the standard deviation of the differences: between items within a seed, or between seeds.
    """
    return spread * _standardised(n, 1 - level, power) if n > 1 else math.nan


def seeds_needed(
    mean: float, spread: float, level: float = LEVEL, power: float = POWER, most: int = 1000
) -> int | None:
    """Return the seeds with which a true difference of `mean` would be found with the given power; None above `most`."""
    if spread == 0:
        return 2
    return next((n for n in range(2, most + 1) if detectable(spread, n, level, power) <= abs(mean)), None)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased estimate 1 - C(n-c, k) / C(n, k) of solving an item with k samples (arXiv 2107.03374, eq. 1).

    Raises `ValueError` for more samples than were drawn.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(
            f"pass@{k} of {correct} right among {n} samples: expected 0 <= right <= samples and 1 <= k <= samples"
        )
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def noise_floor(repeated: Sequence[float]) -> float:
    """Return the standard deviation of one score over evaluations that differ in the engine's seed alone; nan for one."""
    known = _known(repeated)
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def _standardised(n: int, alpha: float, power: float) -> float:
    """Return the effect in standard deviations at which the two-sided t test over n values has the given power."""
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def lacking(effect: float) -> float:
        shift = effect * math.sqrt(n)
        # Far out, where it is zero, the other tail comes as nan.
        other = np.nan_to_num(stats.nct.cdf(-critical, n - 1, shift))
        return float(stats.nct.sf(critical, n - 1, shift) + other) - power

    high = 1.0
    while lacking(high) < 0:
        high *= 1.25
    root: Any = optimize.brentq(lacking, 0.0, high)
    return float(root)


def _paired(before: pd.Series, after: pd.Series) -> tuple[pd.Series, pd.Series]:
    if before.index.has_duplicates or after.index.has_duplicates:
        raise ValueError("an item occurs twice in one evaluation; expected one score per item")
    alone = before.index.symmetric_difference(after.index)
    if len(alone):
        raise ValueError(f"{len(alone)} items are in one evaluation only, {alone[0]!r} first; compare the same items")
    return before.astype(float), after.reindex(before.index).astype(float)


def _known(values: ArrayLike) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]
