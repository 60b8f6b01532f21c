"""Paired tests: items lost and gained, p values, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from harness.stats.intervals import LEVEL, Interval


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


def p_value(difference: Interval, level: float = LEVEL) -> float:
    """Return the two-sided p value of the t test behind a t interval; nan where it has no width."""
    mean, low, high, seeds = difference
    if not high > low:
        return math.nan
    error = (high - low) / 2 / stats.t.ppf((1 + level) / 2, seeds - 1)
    return float(2 * stats.t.sf(abs(mean) / error, seeds - 1))


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down p values, `max_{k<=i} min(1, (m-k+1) p_(k))`; a nan stays one and does not count in m."""
    known = pd.Series(p_values, dtype=float).dropna().sort_values()
    steps = known * np.arange(len(known), 0, -1)
    return list(steps.cummax().clip(upper=1).reindex(range(len(p_values))))


def _paired(before: pd.Series, after: pd.Series) -> tuple[pd.Series, pd.Series]:
    if before.index.has_duplicates or after.index.has_duplicates:
        raise ValueError("an item occurs twice in one evaluation; expected one score per item")
    alone = before.index.symmetric_difference(after.index)
    if len(alone):
        raise ValueError(f"{len(alone)} items are in one evaluation only, {alone[0]!r} first; compare the same items")
    return before.astype(float), after.reindex(before.index).astype(float)
