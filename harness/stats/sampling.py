"""Samples: pass@k, the noise floor, and ratios of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.intervals import Interval, known_values, t_interval


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return 1 - C(n-c, k) / C(n, k), an unbiased estimate of the chance that one of k samples is right.

    `correct` (c) of `n` samples were right; Chen et al. 2021, arXiv 2107.03374, eq. 1. Raises `ValueError` for c above n, and
    for k below 1 or above n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(
            f"pass@{k} of {correct} right among {n} samples: expected 0 <= right <= samples and 1 <= k <= samples"
        )
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def noise_floor(repeated: Sequence[float]) -> float:
    """Return the standard deviation of one score over evaluations that differ only in the engine's seed; nan for one."""
    known = known_values(repeated)
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def mean_ratio(numerators: ArrayLike, denominators: ArrayLike) -> Interval:
    """Return the mean over runs of the ratio of two of their figures (runs,), with its t interval.

    Runs without a positive denominator are left out. A numerator may be negative, so the ratio has no bounds.
    """
    above, below = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    return t_interval(above[below > 0] / below[below > 0])
