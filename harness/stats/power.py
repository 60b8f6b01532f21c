"""The effects that a sample could have found."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, special

from harness.stats.intervals import LEVEL

POWER = 0.80


def detectable_effect(error: float, df: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest effect that a two-sided t test finds with the given power, in the unit of `error`.

    `error` is the standard error of the estimate, `df` are its degrees of freedom, and 1 - `level` is the test's alpha. The
    power is that of the noncentral t distribution.
    """
    critical = float(special.stdtrit(df, 1 - (1 - level) / 2))

    def excess(shift: float) -> float:
        return rejects(shift, df, critical) - power

    high = 1.0  # in standard errors
    while excess(high) < 0:
        high *= 1.25
    root: Any = optimize.brentq(excess, 0.0, high)
    return error * float(root)


def rejects(shift: float, df: float, critical: float) -> float:
    """Return the probability that a two-sided t test rejects beyond ±`critical`, for an effect of `shift` standard errors."""
    below, within = special.nctdtr(df, shift, -critical), special.nctdtr(df, shift, critical)
    # scipy returns nan for probabilities that are practically 0.
    return float(np.nan_to_num(below) + 1 - np.nan_to_num(within))
