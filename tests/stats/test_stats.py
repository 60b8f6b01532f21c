"""Statistics: values worked by hand, peers as oracles, and intervals that cover as often as they promise, by simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import NOTHING, Interval, StandardError, t_interval
from harness.stats.learning.rates import ChosenRate, choose_rates, widening
from harness.stats.paired import compare_estimates, over_items
from harness.stats.power import detectable_effect
from harness.stats.sampling import mean_ratio, noise_floor, pass_at_k
from harness.stats.significance import Flips, find_flips, find_two_groups, holm, p_value, rank_correlation
from harness.stats.two_way import Variances
from harness.stats.two_way import variances as variances_of


def variances(by_seed: Any) -> Variances:
    """Return the variances of items that are each their own cluster, one list per seed."""
    table = np.array(by_seed, dtype=float).T
    ids = tuple(map(str, range(len(table))))
    known = table[~np.isnan(table).any(axis=1)]
    return variances_of(Estimate(dict(enumerate(known.mean(axis=0).tolist())), {"a": ItemTable(table, ids, ids)}))


def item_interval(values: Any, clusters: Any = None) -> Interval:
    """Return the interval over the items of one seed; without clusters, each item is its own."""
    column, ids = np.array(values, dtype=float)[:, None], tuple(map(str, range(len(values))))
    table = ItemTable(column, ids, ids if clusters is None else tuple(map(str, clusters)))
    return over_items(Estimate({0: float(np.nanmean(column))}, {"a": table}))


def bounds(interval: Interval) -> tuple[float, float, float, int]:
    return interval.mean, interval.low, interval.high, interval.seeds


def test_the_t_interval_is_worked_by_hand():
    # mean 0.2, s = 0.1, t_{0.975, 2} = 4.30265: half-width 4.30265 * 0.1 / sqrt(3)
    found = t_interval([0.1, 0.2, 0.3])
    assert bounds(found) == pytest.approx((0.2, 0.2 - 0.248414, 0.2 + 0.248414, 3), abs=1e-6)
    assert found.errors == (pytest.approx((0.1 / math.sqrt(3), 2)),)
    one = t_interval([0.4, math.nan])
    assert (one.mean, one.seeds) == (0.4, 1)
    assert math.isnan(one.low)


def test_p_values_are_those_of_the_t_test():
    values = [0.10, 0.13, 0.19]
    assert p_value(t_interval(values)) == pytest.approx(float(scipy_stats.ttest_1samp(values, 0)[1]))  # pyright: ignore
    assert math.isnan(p_value(NOTHING))
    # no width: the sign test, 2 / 2^n
    assert p_value(Interval(0.1, 0.1, 0.1, 3)) == 0.25
    assert p_value(t_interval([0.5] * 10)) == pytest.approx(2 / 2**10)
    assert p_value(t_interval([0.0] * 10)) == 1
    assert math.isnan(p_value(t_interval([0.1])))


def test_an_interval_stays_within_what_the_quantity_can_be_and_keeps_its_p_value():
    found = t_interval([0.1, 0.9])
    assert (found.low, found.high) == pytest.approx((0.5 - 0.4 * 12.7062, 0.5 + 0.4 * 12.7062), rel=1e-5)
    assert (found.of_unit("%").low, found.of_unit("%").high) == (0, 1)
    assert (found.of_difference("%").low, found.of_difference("%").high) == (-1, 1)
    assert (found.of_difference("points").low, found.of_difference("points").high) == (-2, 2)
    assert (found.of_unit("ratio").low, found.of_unit("ratio").high) == (0, found.high)
    assert p_value(found.of_unit("%")) == p_value(found)
    assert math.isnan(t_interval([0.1]).of_unit("%").low)


def test_flips_are_counted_by_hand_and_right_is_a_score_of_one():
    assert find_flips([1.0, 1.0, 0.0, 0.5], [1.0, 0.0, 1.0, 1.0]) == Flips(1, 2, 4)


def test_an_item_without_a_score_is_neither_lost_nor_gained():
    assert find_flips([1, math.nan, 0.0], [math.nan, 1, 1.0]) == (0, 1, 1)


def test_the_mean_ratio_leaves_out_what_cannot_be_divided_by():
    assert bounds(mean_ratio([1.0, 3.0, 5.0], [2.0, 2.0, 0.0])) == bounds(t_interval([0.5, 1.5]))


def test_a_seed_s_rate_is_chosen_by_the_other_half_of_the_seeds():
    """Seeds 0 and 2 together do best at 4e-4, seed 1 at 2e-4; a rate without values is left out."""
    by_rate = {1e-4: [0.2, 0.2, 0.2], 2e-4: [0.5, 0.6, 0.7], 4e-4: [0.95, 0.4, 0.3], 8e-4: [math.nan] * 3}
    found = choose_rates({rate: dict(enumerate(values)) for rate, values in by_rate.items()})
    assert found == {0: (2e-4, 0.5), 1: (4e-4, 0.4), 2: (2e-4, 0.7)}
    assert choose_rates({1e-4: {0: 0.5}}) == {}
    assert choose_rates({}) == {}


@pytest.mark.parametrize("seeds", [3, 4, 10, 20])
def test_rates_that_halves_choose_raise_few_false_alarms(seeds: int):
    """Two equal methods at the better of two equally good rates differ in at most 5 % of studies, however many seeds.

    The rates share nothing: where a seed is good at one it is as bad at the other, which is the worst case.
    """
    generator, wrong, studies = np.random.default_rng(seeds), 0, 2000
    for _ in range(studies):
        draws = generator.normal(size=(2, seeds))
        sides = [choose_rates({1.0: dict(enumerate(each)), 2.0: dict(enumerate(-each))}) for each in draws]
        values = [np.array([each.value for each in side.values()]) for side in sides]
        found = t_interval(values[0] - values[1]).widened(widening(sides))
        wrong += not found.low <= 0 <= found.high
    assert wrong / studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


def test_an_interval_at_chosen_rates_is_wider_where_the_choices_differ():
    """By simulation: the factor is that between the true error of a mean and the one that its figures show on average."""
    figures = np.random.default_rng(0).normal(size=(200_000, 5))
    halves = figures[:, ::2].sum(1), figures[:, 1::2].sum(1)
    chosen = figures.copy()
    chosen[:, ::2] *= np.sign(halves[1])[:, None]
    chosen[:, 1::2] *= np.sign(halves[0])[:, None]
    shown = chosen.var(axis=1, ddof=1).mean() / 5
    factor = math.sqrt(chosen.mean(axis=1).var() / shown)
    agree, differ = (
        {seed: ChosenRate(rate, 0.5) for seed, rate in enumerate(rates)} for rates in ([1.0] * 5, [1.0] * 4 + [2.0])
    )
    assert widening([agree, agree]) == 1
    assert widening([agree, differ]) == pytest.approx(factor, rel=0.01)
    wide = t_interval([0.1, 0.2, 0.3]).widened(2.0)
    assert bounds(wide) == pytest.approx(bounds(Interval(0.2, 0.2 - 0.4968275, 0.2 + 0.4968275, 3)))
    assert wide.errors[0].error == pytest.approx(2 * 0.1 / math.sqrt(3))


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([0.1, 0.8, 0.12, 0.79, 0.81], ((0.1, 0.12), (0.79, 0.81))),
        ([0.1, 0.1, 0.8, 0.8, 0.8, math.nan], ((0.1, 0.1), (0.8, 0.8))),
        ([0.1, 0.8, 0.79, 0.81, 0.8], None),  # a single outlier
        ([0.1, 0.12, 0.8, 0.81], None),  # four seeds
        ([0.1, 0.2, 0.3, 0.72, 0.8], None),  # the gap of 0.42 is not twice 0.2 + 0.08
        ([0.5] * 6, None),
    ],
)
def test_seeds_in_two_groups_by_hand(values: list[float], groups: object):
    assert find_two_groups(values) == groups


def test_normal_seeds_rarely_look_like_two_groups_and_collapsing_ones_often_do():
    generator = np.random.default_rng(0)
    normal = [find_two_groups(generator.normal(size=5)) is not None for _ in range(4000)]
    collapsed = generator.normal(0, 0.04, (4000, 8)) - 0.4 * (generator.random((4000, 8)) < 0.3)
    assert np.mean(normal) <= 0.05
    assert np.mean([find_two_groups(values) is not None for values in collapsed]) >= 0.4


@pytest.mark.filterwarnings("error")
def test_what_is_too_little_to_vary_is_nan_without_a_warning():
    assert all(map(math.isnan, (*variances([[1.0], [0.5]]), *variances([[1.0]]), noise_floor([0.1, math.nan]))))
    assert holm([0.01, math.nan, 0.04])[::2] == [0.02, 0.04]


def test_holm_is_statsmodels_and_leaves_nan_out():
    values = [0.01, 0.04, 0.03, 0.005]
    peer: Any = multipletests(values, method="holm")[1]
    assert holm(values) == pytest.approx(list(peer))
    found = holm([0.01, math.nan, 0.04])
    assert found[0] == pytest.approx(0.02)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.04)


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample(n: int, data: st.DataObject):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    samples = [True] * correct + [False] * (n - correct)
    draws = [any(draw) for draw in combinations(samples, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_is_refused_for_more_than_was_drawn():
    with pytest.raises(ValueError, match="pass@5 of 1 right among 4 samples"):
        pass_at_k(4, 1, 5)


def test_the_two_variances_are_worked_by_hand():
    # items: variances 1/3 (0 1 0 1 -> mean 1/2) and 1/3, over 4 items each 1/12; means 0.5 and 0.5: nothing beyond
    same = variances([[0, 1, 0, 1], [1, 0, 1, 0]])
    assert same == pytest.approx((1 / 12, 0.0))
    # seeds that differ by 1 in mean, items all alike: 0 within, variance of (0, 1) is 1/2
    assert variances([[0, 0, 0], [1, 1, 1]]) == pytest.approx((0.0, 0.5))
    assert math.isnan(variances([[0, 1]]).seeds)
    # items that change alike for both seeds, 1/12 within: the means 0.5 and 1.5 differ only by the seeds
    assert variances([[0, 1, 0, 1], [1, 2, 1, 2]]) == pytest.approx((1 / 12, 0.5))
    # the third item has no score for one seed; of the others +-1/4 is left in all four cells, r = 1/4
    assert variances([[0, 0, math.nan], [1, 2, 7]]) == pytest.approx((1 / 8, 9 / 8 - 1 / 8))


def test_the_seeds_variance_is_found_though_items_share_their_difficulty():
    generator = np.random.default_rng(0)
    true, found = 0.03**2, list[float]()
    for _ in range(400):
        shared = generator.normal(0, 0.6, 200)
        seeds = generator.normal(0, math.sqrt(true), 3)
        found.append(variances([shared + seed + generator.normal(0, 0.1, 200) for seed in seeds]).seeds)
    assert np.mean(found) == pytest.approx(true, rel=0.15)


def test_two_clusters_of_very_unequal_size_can_show_no_effect():
    values = np.arange(1000.0).reshape(-1, 1) % 2
    table = ItemTable(values, tuple(map(str, range(1000))), ("one",) * 999 + ("other",))
    both = (table, replace(table, values=1 - values))
    one, other = (Estimate({0: float(side.values.mean())}, {"task": side}) for side in both)
    assert math.isnan(compare_estimates(one, other).detectable)


def test_what_is_detectable_is_found_with_its_power_by_statsmodels():
    from statsmodels.stats.power import TTestPower

    for n in (3, 5, 200):
        effect = detectable_effect([StandardError(1 / math.sqrt(n), n - 1)])
        assert TTestPower().power(effect, n, 0.05) == pytest.approx(0.8, abs=1e-4)
    small, large = StandardError(0.1, 199), StandardError(1.0, 199)
    assert detectable_effect([small]) == pytest.approx(0.1 * detectable_effect([large]))
    assert detectable_effect([small, StandardError(0.1, 2)]) == detectable_effect([StandardError(0.1, 2)])


def test_the_noise_floor_is_the_standard_deviation_of_repeats():
    assert noise_floor([0.5, 0.6]) == pytest.approx(0.0707107)
    assert math.isnan(noise_floor([0.5]))


def coverage(covered: list[bool]) -> float:
    return sum(covered) / len(covered)


def test_t_intervals_over_three_seeds_cover_as_often_as_they_say():
    generator = np.random.default_rng(0)
    found = [t_interval(generator.normal(0.1, 0.05, 3)) for _ in range(4000)]
    # binomial standard error at 4000: 0.0034
    assert coverage([i.low <= 0.1 <= i.high for i in found]) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("shares", [(0.05, 0.15), (0.02, 0.02), (0.10, 0.40)])
def test_item_intervals_cover_as_often_as_they_say(shares: tuple[float, float]):
    generator = np.random.default_rng(1)
    lost, gained = shares
    covered = []
    for _ in range(400):
        values = generator.choice([-1.0, 0.0, 1.0], size=200, p=[lost, 1 - lost - gained, gained])
        interval = item_interval(values)
        covered.append(interval.low <= gained - lost <= interval.high)
    # standard error 0.011; discrete differences of 200 items cover a little less than they say
    assert 0.91 <= coverage(covered) <= 0.985


def test_items_that_all_changed_alike_have_an_interval_without_width():
    assert bounds(item_interval([0.0] * 20)) == (0.0, 0.0, 0.0, 1)


def test_an_item_interval_is_student_s_where_each_item_is_its_own_cluster():
    values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], size=50)
    assert bounds(item_interval(values))[:3] == pytest.approx(bounds(t_interval(values))[:3])
    assert bounds(item_interval([*values, math.nan])) == bounds(item_interval(values))


def test_a_clustered_item_interval_is_statsmodels_cluster_robust_one():
    import statsmodels.api as sm

    generator = np.random.default_rng(4)
    clusters = np.repeat(np.arange(12), 5)
    values = generator.normal(0, 1, 12)[clusters] + generator.normal(0, 0.5, 60)
    peer: Any = sm.OLS(values, np.ones((60, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "df_correction": True}
    )
    found = item_interval(values, clusters)
    # statsmodels' correction is G / (G - 1) * (n - 1) / (n - 1) for a mean
    assert found.errors[0].error == pytest.approx(peer.bse[0])
    assert found.errors[0].df == pytest.approx(11)


def test_a_rank_correlation_is_worked_by_hand():
    # ranks differ by 0, 1, 1, 0: 1 - 6 * 2 / (4 * (16 - 1))
    assert rank_correlation([1, 2, 3, 40, math.nan], [0.1, 0.3, 0.2, 0.4, 9]) == pytest.approx(0.8)
    assert math.isnan(rank_correlation([1, 2], [1, 2]))
    assert math.isnan(rank_correlation([1, 2, 3], [5, 5, 5]))
