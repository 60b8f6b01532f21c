"""Verdicts on a claimed effect: supported, contradicted or not resolved, from only the effect's interval.

An effect is supported where its whole 95 % interval over at least SEEDS seeds exceeds the smallest effect of interest in the
claimed direction, and contradicted where the whole interval falls short of it (so also where it lies on the other side).
Both need, besides, the p value of the test against that smallest effect, adjusted for the claims judged together, at or
below LEVEL. With a smallest effect of 0 this is the test of the effect's sign.
"""

from __future__ import annotations

import math

from harness.stats.intervals import Interval, has_width, resolved
from harness.stats.power import seeds_needed
from harness.stats.significance import p_value

SUPPORTED, CONTRADICTED, NOT_RESOLVED, NO_RUNS = "supported", "contradicted", "not resolved", "no runs"
LEVEL, SEEDS, MOST_SEEDS = 0.05, 3, 200


def judge(effect: Interval, adjusted: float, sign: int = 1, smallest: float = 0.0) -> str:
    """Return the verdict on a claim that an effect has a sign and at least the smallest size."""
    if not effect.seeds:
        return NO_RUNS
    beyond = effect.beyond(smallest, sign)
    if not resolved(beyond, SEEDS) or not adjusted <= LEVEL:
        return NOT_RESOLVED
    return SUPPORTED if beyond.mean > 0 else CONTRADICTED


def p_of(effect: Interval, sign: int = 1, smallest: float = 0.0) -> float:
    """Return the two-sided p value of an effect against the smallest one; nan for fewer than SEEDS seeds."""
    return p_value(effect.beyond(smallest, sign)) if has_width(effect, SEEDS) else math.nan


def seeds_to_resolve(effect: Interval, sign: int = 1, smallest: float = 0.0, tests: int = 1) -> int | None:
    """Return the seeds that would resolve an effect of this size and spread with 80 % power, as one of so many tests.

    The size is the distance from the smallest effect of interest, the level LEVEL / tests. None where more than MOST_SEEDS
    are needed, and where fewer than two seeds say nothing about the spread.
    """
    if not has_width(effect):
        return None
    spread = effect.error * math.sqrt(effect.seeds)
    distance = effect.beyond(smallest, sign).mean
    found = seeds_needed(distance, spread, level=1 - LEVEL / max(tests, 1), most=MOST_SEEDS)
    return None if found is None else max(found, effect.seeds + 1, SEEDS)
