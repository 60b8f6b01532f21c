"""Tests: p values of intervals, items lost and gained, seeds in two groups, Holm's correction, Spearman's rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from harness.stats.intervals import LEVEL, ROUNDING, Interval, StandardError, has_width, known_values

FEWEST_IN_GROUPS, GAP = 5, 2.0


class Flips(NamedTuple):
    """Items whose answer changed from right to wrong (`lost`) or from wrong to right (`gained`), of `items` compared."""

    lost: int
    gained: int
    items: int


def p_value(interval: Interval, level: float = LEVEL) -> float:
    """Return the two-sided p value of the t test that belongs to an interval; nan if there is no interval.

    Of several standard errors the one with the largest p value counts, as the widest interval does.
    If the difference is the same for all seeds, the interval has no width and a t test is not possible. The p value is then
    that of the exact sign test: 1 if the mean is zero, else 2 / 2^n for n seeds, which is large for few seeds.
    """
    if math.isnan(interval.low):
        return math.nan
    if not has_width(interval, 1):
        return 1.0 if abs(interval.mean) <= ROUNDING else min(1.0, 2.0 ** (1 - interval.seeds))
    errors = interval.errors
    if not errors:
        df = interval.seeds - 1
        errors = (StandardError(interval.half_width / float(special.stdtrit(df, (1 + level) / 2)), df),)
    return max(float(2 * special.stdtr(each.df, -abs(interval.mean) / each.error)) for each in errors)


def find_flips(before: ArrayLike, after: ArrayLike) -> Flips:
    """Count items lost and gained between two evaluations of the same items in the same order; right is a score of 1.

    An item without a score (nan) in either is not counted.
    """
    left, right = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    known = ~np.isnan(left) & ~np.isnan(right)
    was, now = left[known] >= 1, right[known] >= 1
    return Flips(int((was & ~now).sum()), int((~was & now).sum()), int(known.sum()))


def find_two_groups(values: ArrayLike) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return the two groups that seeds fall into, each as (lowest, highest); None where they do not.

    The rule: at least FEWEST_IN_GROUPS values, at least two in each group, and a gap between the groups that is more than GAP
    times as wide as both groups together. Normal values meet it in 4 % of studies with 5 seeds and in 1 % with more. An
    interval over few such seeds is too narrow, because it rarely has both groups in their true proportion.
    """
    known = np.sort(known_values(values))
    if len(known) < FEWEST_IN_GROUPS:
        return None
    inner = np.diff(known)[1:-1]
    place = int(inner.argmax()) + 2
    low, high = known[:place], known[place:]
    rest = float(np.ptp(low) + np.ptp(high))
    if inner.max() <= ROUNDING or inner.max() <= GAP * rest:
        return None
    return (float(low[0]), float(low[-1])), (float(high[0]), float(high[-1]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, `max_{k<=i} min(1, (m-k+1) p_(k))`; a nan stays nan and does not count in m."""
    known = [(p, place) for place, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Return Spearman's rank correlation over pairs without nan; nan for fewer than three, or if one side is constant."""
    pairs = np.column_stack([np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)])
    known = pairs[~np.isnan(pairs).any(axis=1)]
    if len(known) < 3 or (known == known[0]).all(axis=0).any():
        return math.nan
    return float(stats.spearmanr(known[:, 0], known[:, 1]).statistic)
