"""Levels of several looks: published boundaries, the plan that they follow, and how often studies with looks err."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.stats.claim_verdicts import DIFFERENT, EQUIVALENT, NO_VERDICT, NOT_RESOLVED, SUPPORTED, judge, p_of
from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import interval_from
from harness.stats.looks import ALPHA, FEWEST_SEEDS, error_spent, level_at, look_levels
from harness.stats.two_way import two_way_interval

LOOKS = (3, 5, 10)


def test_boundaries_are_the_published_ones():
    """Five equal looks, two-sided 5 %, spending of O'Brien and Fleming's type: ldbounds 2.0 (R), commonly reprinted."""
    bounds = [-stats.norm.ppf(level / 2) for level in look_levels((2, 4, 6, 8, 10))]
    assert bounds == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)


def test_levels_are_those_of_a_multivariate_normal():
    """The peer is scipy's integral of the joint normal distribution of the statistics, correlations sqrt(n_i / n_j)."""
    limits = -stats.norm.ppf(np.array(look_levels(LOOKS)) / 2)
    for last in range(1, len(LOOKS) + 1):
        looks = LOOKS[:last]
        correlation = np.sqrt(np.minimum.outer(looks, looks) / np.maximum.outer(looks, looks))
        peer: Any = stats.multivariate_normal(cov=correlation, seed=0)  # pyright: ignore[reportArgumentType]
        crossed = 1 - float(peer.cdf(limits[:last], lower_limit=-limits[:last]))
        assert crossed == pytest.approx(error_spent(looks[-1] / LOOKS[-1]), abs=2e-5)


def test_all_error_is_spent_at_the_end_and_little_before():
    assert error_spent(1.0) == pytest.approx(0.05)
    assert error_spent(0.5) == pytest.approx(0.0031, abs=2e-4)  # Lan and DeMets 1983, O'Brien-Fleming type, two looks
    assert look_levels((5,)) == (pytest.approx(0.05),)
    first, last = look_levels((5, 10))
    assert first == pytest.approx(error_spent(0.5))
    assert 0.045 < last < 0.05


@given(st.sets(st.integers(3, 40), min_size=2, max_size=8).map(lambda found: tuple(sorted(found))))
def test_the_last_look_gets_what_is_left_and_all_looks_add_up_to_at_least_the_whole(looks: tuple[int, ...]):
    levels = look_levels(looks)
    assert levels[-1] - 1e-9 <= ALPHA <= sum(levels) + 1e-9
    assert min(levels) >= 0


@pytest.mark.parametrize("looks", [(), (1, 5), (5, 5), (10, 5)])
def test_looks_that_do_not_increase_are_refused(looks: tuple[int, ...]):
    with pytest.raises(ValueError, match="increasing numbers"):
        look_levels(looks)


def test_the_level_is_that_of_the_look_and_there_is_none_between_looks():
    assert [level_at(seeds, LOOKS) for seeds in LOOKS] == list(look_levels(LOOKS))
    assert all(math.isnan(level_at(seeds, LOOKS)) for seeds in (2, 4, 9, 11))
    assert level_at(7, ()) == ALPHA
    assert level_at(FEWEST_SEEDS, (2, FEWEST_SEEDS)) == ALPHA  # two seeds test nothing, so they spend nothing


def test_a_verdict_is_given_at_the_level_of_the_look():
    effect = interval_from(0.03, 0.01, 4, 5)  # t = 3 on 4 degrees of freedom: p = 0.0399
    assert p_of(effect) == pytest.approx(0.0399, abs=1e-4)
    assert [judge(effect, level=level) for level in (0.05, 0.04, 0.0398)] == [SUPPORTED, SUPPORTED, NOT_RESOLVED]
    assert judge(effect, level=level_at(5, LOOKS)) == NOT_RESOLVED
    assert judge(effect, level=level_at(4, LOOKS)) == NO_VERDICT
    near = interval_from(0.0, 0.01, 4, 5)  # at ±0.0215: t = 2.15, one-sided p = 0.049
    assert [judge(near, margin=0.0215, level=level) for level in (0.05, 0.0476)] == [EQUIVALENT, NOT_RESOLVED]


def study(draws: np.random.Generator, seeds: int, clusters: int, effect: float = 0.0) -> Estimate:
    """Draw a paired difference by seed and item: 4 points between seeds, 8 of an item, 25 of an item in a seed."""
    table = draws.normal(0, 0.04, (1, seeds)) + draws.normal(0, 0.08, (clusters, 1))
    values = effect + table + draws.normal(0, 0.25, (clusters, seeds))
    names = tuple(map(str, range(clusters)))
    return Estimate(dict(enumerate(values.mean(axis=0).tolist())), {"task": ItemTable(values, names, names)})


def first_seeds(estimate: Estimate, seeds: int) -> Estimate:
    """Return what a study had measured after its first seeds."""
    table = estimate.items["task"].of_seeds(range(seeds))
    return Estimate({seed: estimate.by_seed[seed] for seed in range(seeds)}, {"task": table})


def share_with(verdicts: Sequence[str], looks: tuple[int, ...], studies: int, seed: int, **rule: float) -> float:
    """Return the share of studies of methods with a true difference that get one of some verdicts at any look."""
    draws, found = np.random.default_rng(seed), 0
    effect, margin = rule.get("effect", 0.0), rule.get("margin", math.nan)
    for _ in range(studies):
        drawn = study(draws, looks[-1], 60, effect)
        intervals = ((n, two_way_interval(first_seeds(drawn, n))) for n in looks)
        found += any(judge(each, margin=margin, level=level_at(n, looks)) in verdicts for n, each in intervals)
    return found / studies


def test_few_studies_of_equal_methods_ever_show_a_difference():
    assert share_with(DIFFERENT, LOOKS, 100, seed=1) <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("looks", [LOOKS, (3, 4, 5, 7)])
def test_at_most_one_study_in_twenty_errs_over_all_looks(looks: tuple[int, ...]):
    """2,000 studies through the interval and the judge of the product; standard error 0.49 %."""
    assert share_with(DIFFERENT, looks, 2_000, seed=2) <= 0.05 + 2 * 0.0049
    assert share_with([EQUIVALENT], looks, 2_000, seed=3, effect=0.06, margin=0.06) <= 0.05 + 2 * 0.0049
