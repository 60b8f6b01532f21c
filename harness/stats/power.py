"""What a sample could have shown: detectable effects and the seeds that would resolve one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, special

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


def rejects(shift: float, df: float, critical: float) -> float:
    """Return the chance that a t test rejects beyond `critical` on either side, for an effect of `shift` standard errors."""
    below, within = special.nctdtr(df, shift, -critical), special.nctdtr(df, shift, critical)
    # Far out, where they are 0, they may come as nan.
    return float(np.nan_to_num(below) + 1 - np.nan_to_num(within))


def _standardised(df: float, alpha: float, power: float) -> float:
    """Return the effect in standard errors at which the two-sided t test has the given power."""
    critical = float(special.stdtrit(df, 1 - alpha / 2))

    def lacking(shift: float) -> float:
        return rejects(shift, df, critical) - power

    high = 1.0
    while lacking(high) < 0:
        high *= 1.25
    root: Any = optimize.brentq(lacking, 0.0, high)
    return float(root)
