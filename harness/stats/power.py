"""What a sample could have shown: detectable effects and the seeds that would resolve one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, stats

from harness.stats.intervals import LEVEL

POWER = 0.80


def detectable(spread: float, n: int, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest mean difference that a paired t test over n values finds with the given power.

    `spread` is the standard deviation of the differences: between items within a seed, or between seeds.
    """
    return detectable_effect(spread / math.sqrt(n), n - 1, level, power) if n > 1 else math.nan


def detectable_effect(error: float, df: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest effect that a two-sided t test with this standard error and df finds with the given power."""
    return error * _standardised(df, 1 - level, power)


def seeds_needed(
    mean: float, spread: float, level: float = LEVEL, power: float = POWER, most: int = 1000
) -> int | None:
    """Return the seeds with which a true difference of `mean` would be found with the given power; None above `most`."""
    if spread == 0:
        return 2
    return next((n for n in range(2, most + 1) if detectable(spread, n, level, power) <= abs(mean)), None)


def _standardised(df: float, alpha: float, power: float) -> float:
    """Return the effect in standard errors at which the two-sided t test has the given power."""
    critical = stats.t.ppf(1 - alpha / 2, df)

    def lacking(shift: float) -> float:
        # Far out, where it is zero, the other tail comes as nan.
        other = np.nan_to_num(stats.nct.cdf(-critical, df, shift))
        return float(stats.nct.sf(critical, df, shift) + other) - power

    high = 1.0
    while lacking(high) < 0:
        high *= 1.25
    root: Any = optimize.brentq(lacking, 0.0, high)
    return float(root)
