"""Retention at equal learning: values by hand, what is not comparable, and the size and power of the comparison."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation.simulated_studies import PATHS, CurveStudy, two_curves
from harness.stats.estimates import ItemTable
from harness.stats.intervals import t_interval
from harness.stats.learning.equal_learning import (
    NO_COMMON_LEARNING,
    TOO_FEW_POINTS,
    Curve,
    at_equal_learning,
    over_stages,
)
from harness.stats.two_way import two_way_interval


def curve(learned: list[float], kept: list[float], task: str = "old", items: int = 10) -> Curve:
    """Return a curve whose retained task has the given scores, right in its first items."""
    right = np.arange(items)[:, None] < np.round(np.array(kept) * items)
    ids = tuple(map(str, range(items)))
    return Curve(np.array(learned), {task: ItemTable(right.astype(float), ids, ids)})


def test_the_difference_is_the_area_between_the_curves_over_the_common_learning():
    """Common learning is 0.2 to 0.2 + 0.9 * 0.4 = 0.56; the base is read at 0.2, 0.4, 0.56, the other on a line."""
    base = curve([0.2, 0.4, 0.6], [0.8, 0.8, 0.6])
    other = curve([0.2, 0.3, 0.5, 0.7], [0.8, 0.7, 0.6, 0.5])
    found = at_equal_learning({3: base}, {3: other})
    # base changes by 0, 0, -0.2 * 0.8 = -0.16; trapezoids (0 * 0.2 + (0 - 0.16) / 2 * 0.16) / 0.36
    assert found.base.by_seed[3] == pytest.approx(-0.0128 / 0.36)
    # other at 0.2: 0; at 0.4: halfway from -0.1 to -0.2; at 0.56: 0.3 of the way from -0.2 to -0.3
    assert found.other.by_seed[3] == pytest.approx((-0.075 * 0.2 - (0.15 + 0.23) / 2 * 0.16) / 0.36)
    assert found.common[3] == pytest.approx((0.2, 0.56, 1))
    assert found.obstacle == ""


def test_a_level_is_read_where_it_is_first_reached_so_what_comes_after_learning_does_not_count():
    base = curve([0.2, 0.5, 0.8], [0.9, 0.8, 0.7])
    longer = curve([0.2, 0.5, 0.8, 0.8, 0.8], [0.9, 0.8, 0.7, 0.3, 0.0])
    assert at_equal_learning({0: base}, {0: longer}).difference.by_seed[0] == pytest.approx(0.0)


def test_learning_that_falls_is_pooled_and_not_followed():
    """The pool adjacent violators fit of 0.2, 0.6, 0.4, 0.8 is 0.2, 0.5, 0.5, 0.8."""
    falls, fitted = (curve([0.2, *middle, 0.8], [0.9, 0.7, 0.6, 0.5]) for middle in ([0.6, 0.4], [0.5, 0.5]))
    base = curve([0.2, 0.4, 0.8], [0.9, 0.8, 0.6])
    assert at_equal_learning({0: base}, {0: falls}).other.values == pytest.approx(
        at_equal_learning({0: base}, {0: fitted}).other.values
    )


def test_curves_without_common_learning_are_not_compared():
    low, high = curve([0.1, 0.2, 0.3], [0.8, 0.7, 0.6]), curve([0.5, 0.6, 0.7], [0.8, 0.7, 0.6])
    found = at_equal_learning({0: low, 1: low, 2: low}, {0: high, 1: high, 2: low})
    assert (found.obstacle, list(found.common), found.seeds) == (NO_COMMON_LEARNING, [2], 3)
    assert at_equal_learning({}, {}).obstacle == NO_COMMON_LEARNING


def test_a_method_that_learns_all_between_two_points_is_not_compared():
    jump = curve([0.1, 0.9, 0.9], [0.8, 0.7, 0.6])
    slow = curve([0.1, 0.3, 0.5, 0.7], [0.8, 0.7, 0.6, 0.5])
    assert at_equal_learning({0: jump}, {0: slow}).obstacle == TOO_FEW_POINTS


def test_stages_are_averaged_over_the_seeds_that_have_all():
    flat, falling = (curve([0.2, 0.4, 0.6], [0.8, *rest]) for rest in ([0.8, 0.8], [0.6, 0.4]))
    one = at_equal_learning({0: flat, 1: flat}, {0: falling, 1: falling})
    two = at_equal_learning({0: flat}, {0: flat})
    both = over_stages([one, two])
    assert both.difference.by_seed == pytest.approx({0: one.difference.by_seed[0] / 2})
    assert both.common[0] == one.common[0]
    assert (both.seeds, both.obstacle) == (1, "")  # the other seed has no second stage, so it lacks no learning there


shares = st.lists(st.integers(0, 10).map(lambda tenths: tenths / 10), min_size=4, max_size=4)


@given(shares, shares, shares, shares)
def test_sides_swap_sign_items_add_up_and_a_method_equals_itself(
    learned: list[float], kept: list[float], others: list[float], lost: list[float]
):
    one, two = {0: curve(learned, kept)}, {0: curve(others, lost)}
    there, back = at_equal_learning(one, two).difference, at_equal_learning(two, one).difference
    assert there.values == pytest.approx(-back.values)
    for estimate in (there, back):
        for table in estimate.items.values():
            assert table.values.mean(axis=0) == pytest.approx(estimate.values)
    assert not at_equal_learning(one, one).difference.values.any()


def resolved_share(study: CurveStudy, seeds: int, studies: int, *, two_way: bool = True) -> float:
    """Return the share of simulated studies whose interval excludes zero."""
    generator, found = np.random.default_rng(seeds), 0
    for _ in range(studies):
        difference = at_equal_learning(*two_curves(generator, seeds, study)).difference
        interval = two_way_interval(difference) if two_way else t_interval(difference.values)
        found += interval.low > 0 or interval.high < 0
    return found / studies


def test_two_methods_on_one_curve_are_told_apart_in_at_most_5_percent_of_studies_and_5_points_are_found():
    """A small version with a fixed seed, 5 of 120 and 59 of 60 studies; `benchmarks/simulation/coverage.py` has more."""
    assert resolved_share(CurveStudy(speeds=(1.5, 6.0)), 5, 120) == pytest.approx(5 / 120, abs=0.009)
    assert resolved_share(CurveStudy(speeds=(1.5, 3.0), effect=0.05), 20, 60) == pytest.approx(59 / 60, abs=0.017)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
@pytest.mark.parametrize("path", PATHS)
def test_methods_that_learn_at_different_speeds_on_one_curve_are_not_told_apart(seeds: int, path: str):
    assert resolved_share(CurveStudy(speeds=(1.5, 6.0), path=path), seeds, 400) <= 0.05 + 2 * 0.011
