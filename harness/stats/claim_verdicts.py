"""Verdicts on claimed effects: one effect judged from its interval, and several claims judged in a fixed sequence.

An effect is supported where its whole 95 % interval over at least FEWEST_SEEDS seeds exceeds the smallest effect of interest
in the claimed direction, and contradicted where the whole interval falls short of it. With a smallest effect of 0 this is the
test of the effect's sign. Otherwise it is equivalent where two one-sided tests at 5 % show that it is within a margin on
either side of zero, that is, where its 90 % interval is inside the margin (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15).

In a sequence that was fixed in advance, each claim is tested at the full level, and a later one only if the earlier one was
supported or contradicted (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001, J. Stat. Plan. Inference 99). Then
the chance of any false difference in the sequence is at most 5 %. Equivalence ends the sequence: an equivalent effect may be
zero, and if the tests continued after it, every effect that is zero would add another 5 % chance of a false difference.

A study may be looked at after several planned numbers of seeds. Each look tests at its own level, and all looks together spend
5 % for each claim (`harness.stats.looks`; for a sequence see Glimm, Maurer and Bretz 2010, Statistics in Medicine 29).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

from harness.stats.intervals import Interval, has_width
from harness.stats.looks import ALPHA, FEWEST_SEEDS
from harness.stats.significance import p_value

SUPPORTED, CONTRADICTED, EQUIVALENT = "supported", "contradicted", "equivalent"
NOT_RESOLVED, NOT_TESTABLE, NOT_TESTED = "not resolved", "not testable", "not tested"
NO_VERDICT = "no verdict"
DIFFERENT = (SUPPORTED, CONTRADICTED)


def judge(
    effect: Interval, sign: int = 1, smallest: float = 0.0, margin: float = math.nan, level: float = ALPHA
) -> str:
    """Return the verdict on a claim that an effect has a sign and at least the smallest size.

    `margin` is the half-width of the zone of equivalence around zero; with nan, equivalence is not tested. `level` is that of
    the look, see `harness.stats.looks.level_at`; with nan there is no verdict. With fewer than FEWEST_SEEDS seeds the claim is
    not testable, and an interval without width is not resolved.
    """
    if effect.seeds < FEWEST_SEEDS:
        return NOT_TESTABLE
    if math.isnan(level):
        return NO_VERDICT
    if p_of(effect, sign, smallest) < level:
        return SUPPORTED if effect.beyond(smallest, sign).mean > 0 else CONTRADICTED
    return EQUIVALENT if p_equivalent(effect, margin) <= level else NOT_RESOLVED


def p_of(effect: Interval, sign: int = 1, smallest: float = 0.0) -> float:
    """Return the two-sided p value of an effect against the smallest one of interest; nan below FEWEST_SEEDS seeds."""
    return p_value(effect.beyond(smallest, sign)) if has_width(effect, FEWEST_SEEDS) else math.nan


def p_equivalent(effect: Interval, margin: float) -> float:
    """Return the p value of two one-sided t tests that an effect is within ±margin; nan where they cannot be computed.

    It is the larger of the two p values, `P(T > (margin - |mean|) / error)`, of each of the interval's standard errors.
    """
    if not has_width(effect, FEWEST_SEEDS) or not effect.errors or math.isnan(margin):
        return math.nan
    return max(float(special.stdtr(each.df, (abs(effect.mean) - margin) / each.error)) for each in effect.errors)


def gate(verdicts: Sequence[str]) -> list[str]:
    """Return the verdicts of a fixed sequence: after the first that shows no difference, the others are not tested.

    A claim that is not testable neither opens nor closes the gate. The design decides that, but at equal learning the curves
    do too: without common learning, or with too few points, a claim is passed over. One without a look, or whose planned runs
    are not there yet, has no verdict and closes the gate.
    """
    gated, is_open = list[str](), True
    for verdict in verdicts:
        gated.append(verdict if is_open or verdict in (NOT_TESTABLE, NO_VERDICT) else NOT_TESTED)
        is_open = is_open and verdict in (*DIFFERENT, NOT_TESTABLE)
    return gated
