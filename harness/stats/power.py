"""The effects that a sample could have found."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, stats

from harness.stats.intervals import LEVEL

POWER = 0.80


def detectable_effect(error: float, df: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest effect that a two-sided t test finds with the given power, in the unit of `error`.

    `error` is the standard error of the estimate, `df` are its degrees of freedom, and 1 - `level` is the test's alpha. The
    power is that of the noncentral t distribution.
    """
    critical = stats.t.ppf(1 - (1 - level) / 2, df)

    def excess(shift: float) -> float:
        # scipy returns nan for a tail that is practically 0.
        other = np.nan_to_num(stats.nct.cdf(-critical, df, shift))
        return float(stats.nct.sf(critical, df, shift) + other) - power

    high = 1.0  # in standard errors
    while excess(high) < 0:
        high *= 1.25
    root: Any = optimize.brentq(excess, 0.0, high)
    return error * float(root)
