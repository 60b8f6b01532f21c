"""Verdicts: values by hand for the interval's rule and for equivalence, the sequence, and how often it errs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.stats.claim_verdicts import (
    CONTRADICTED,
    EQUIVALENT,
    NOT_RESOLVED,
    NOT_TESTABLE,
    NOT_TESTED,
    SUPPORTED,
    gate,
    judge,
    p_equivalent,
    p_of,
)
from harness.stats.intervals import Interval, StandardError, interval_from, t_interval

NAN = float("nan")


@pytest.mark.parametrize(
    ("interval", "smallest", "verdict"),
    [
        (Interval(0.1, 0.06, 0.14, 3), 0.05, SUPPORTED),
        (Interval(0.1, 0.04, 0.16, 3), 0.05, NOT_RESOLVED),
        (Interval(0.02, 0.01, 0.03, 3), 0.05, CONTRADICTED),
        (Interval(-0.1, -0.14, -0.06, 3), 0.05, CONTRADICTED),
        (Interval(0.1, 0.06, 0.14, 2), 0.05, NOT_TESTABLE),
        (Interval(0.1, 0.1, 0.1, 3), 0.0, NOT_RESOLVED),
        (Interval(NAN, NAN, NAN, 0), 0.05, NOT_TESTABLE),
    ],
)
def test_an_interval_beyond_the_smallest_effect_supports_and_one_short_of_it_contradicts(
    interval: Interval, smallest: float, verdict: str
):
    mirrored = Interval(-interval.mean, -interval.high, -interval.low, interval.seeds)
    assert judge(interval, 1, smallest) == verdict
    assert judge(mirrored, -1, smallest) == verdict


def test_equivalence_by_hand():
    """Values 0.01, -0.01, 0.02, 0: mean 0.005, s = 0.0129099, error 0.00645497, t(0.95, 3) = 2.353363.

    The 90 % interval is 0.005 +- 0.0151908 = [-0.0101908, 0.0201908], so the margin of 0.0202 holds it and 0.0201 does not.
    """
    effect = t_interval([0.01, -0.01, 0.02, 0.0])
    assert judge(effect, margin=0.0202) == EQUIVALENT
    assert judge(effect, margin=0.0201) == NOT_RESOLVED
    assert judge(effect) == NOT_RESOLVED
    # At 0.02: t = 0.015 / 0.00645497 = 2.32379 on 3 degrees of freedom.
    peer: Any = stats.ttest_1samp([0.01, -0.01, 0.02, 0.0], 0.02, alternative="less")
    assert p_equivalent(effect, 0.02) == pytest.approx(peer.pvalue)
    assert p_equivalent(effect, 0.02) == pytest.approx(0.0514, abs=1e-4)


def test_a_difference_that_is_shown_is_not_called_equivalent():
    assert judge(interval_from(0.01, 0.001, 9, 10), margin=0.05) == SUPPORTED
    assert judge(interval_from(0.01, 0.001, 9, 10), sign=-1, margin=0.05) == CONTRADICTED


@given(st.floats(-0.1, 0.1), st.floats(0.001, 0.1), st.integers(2, 30), st.floats(0.001, 0.2), st.sampled_from([1, -1]))
def test_equivalence_is_the_90_percent_interval_within_the_margin(
    mean: float, error: float, df: int, margin: float, sign: int
):
    effect, wide = interval_from(mean, error, df, df + 1), interval_from(mean, error, df, df + 1, level=0.90)
    within = -margin < wide.low and wide.high < margin
    verdict = judge(effect, sign, 0.0, margin)
    apart = effect.low > 0 or effect.high < 0
    near = min(abs(margin + wide.low), abs(margin - wide.high), abs(effect.low), abs(effect.high)) < 1e-9
    assert near or verdict == (EQUIVALENT if within and not apart else verdict)
    assert near or (verdict == EQUIVALENT) == (within and not apart)


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=3, max_size=6, unique=True), st.floats(0, 0.5))
def test_interval_and_p_value_say_the_same(values: list[float], smallest: float):
    interval = t_interval(values)
    p = p_of(interval, 1, smallest)
    outside = interval.low > smallest or interval.high < smallest
    assert (p < 0.05) == outside or min(abs(interval.low - smallest), abs(interval.high - smallest)) < 1e-9


@pytest.mark.parametrize(
    ("alone", "in_sequence"),
    [
        ([SUPPORTED, CONTRADICTED, EQUIVALENT], [SUPPORTED, CONTRADICTED, EQUIVALENT]),
        ([SUPPORTED, NOT_RESOLVED, SUPPORTED], [SUPPORTED, NOT_RESOLVED, NOT_TESTED]),
        ([EQUIVALENT, SUPPORTED, SUPPORTED], [EQUIVALENT, NOT_TESTED, NOT_TESTED]),
        ([NOT_TESTABLE, SUPPORTED, NOT_RESOLVED], [NOT_TESTABLE, SUPPORTED, NOT_RESOLVED]),
        ([NOT_RESOLVED, NOT_TESTABLE, SUPPORTED], [NOT_RESOLVED, NOT_TESTABLE, NOT_TESTED]),
        ([], []),
    ],
)
def test_a_later_claim_is_tested_only_after_a_difference(alone: list[str], in_sequence: list[str]):
    assert gate(alone) == in_sequence


@pytest.mark.parametrize("effects", [(0.0, 0.0, 0.0), (0.2, 0.0, 0.0), (0.2, -0.2, 0.0), (0.0, 0.2, 0.0)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_at_most_one_study_in_twenty_shows_any_difference_that_is_not_there(effects: tuple[float, ...], seeds: int):
    """4,000 studies of three claims whose seeds are correlated, as one run's figures are; standard error 0.34 %."""
    draws = np.random.default_rng(7 * seeds + len(effects))
    studies, wrong = 4_000, 0
    shared = draws.normal(size=(studies, seeds, 1))
    noise = 0.05 * (0.7 * shared + math.sqrt(1 - 0.49) * draws.normal(size=(studies, seeds, 3)))
    values = noise + np.array(effects)
    means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(seeds)
    reach = float(stats.t.ppf(0.975, seeds - 1)) * errors
    for mean, error, half in zip(means, errors, reach, strict=True):
        intervals = [
            Interval(float(m), float(m - h), float(m + h), seeds, (StandardError(float(e), seeds - 1),))
            for m, e, h in zip(mean, error, half, strict=True)
        ]
        found = gate([judge(each, margin=0.3 if seeds == 10 else NAN) for each in intervals])
        false = [verdict for verdict, effect in zip(found, effects, strict=True) if effect == 0]
        wrong += bool({SUPPORTED, CONTRADICTED} & set(false))
    assert wrong / studies <= 0.05 + 3 * 0.0034
