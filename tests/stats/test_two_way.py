"""The interval for another seed and other items: an oracle for its parts, and its coverage by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import effective_clusters, t_interval
from harness.stats.two_way import components, two_way_interval, unpaired_interval

Generator = np.random.Generator


def estimate_of(values: np.ndarray, clusters: np.ndarray) -> Estimate:
    """Return the mean over items of a table (items, seeds)."""
    ids = tuple(map(str, range(len(values))))
    items = {"a": ItemTable(values, ids, tuple(map(str, clusters)))}
    return Estimate(dict(enumerate(values.mean(axis=0).tolist())), items)


def test_the_parts_are_the_mean_squares_of_a_two_way_analysis_of_variance():
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    generator, seeds, clusters = np.random.default_rng(0), 4, 6
    cells = generator.normal(size=(clusters, seeds)) + generator.normal(size=clusters)[:, None]
    rows = np.repeat(cells, 3, axis=0) + generator.normal(0, 1e-12, (18, seeds))
    found = components(estimate_of(rows, np.repeat(np.arange(clusters), 3)))
    cluster, seed = np.indices(cells.shape)
    table = pd.DataFrame({"x": cells.ravel(), "seed": seed.ravel(), "cluster": cluster.ravel()})
    squares: Any = anova_lm(ols("x ~ C(seed) + C(cluster)", table).fit())["mean_sq"]
    assert found is not None
    assert [found.seeds, found.clusters, found.both] == pytest.approx(list(squares / cells.size))
    assert (found.df_seeds, found.df_clusters) == (seeds - 1, clusters - 1)


def test_without_items_it_is_over_seeds_and_with_one_seed_over_items():
    assert two_way_interval(Estimate({0: 0.1, 1: 0.2, 2: 0.4})) == t_interval([0.1, 0.2, 0.4])
    values, clusters = np.random.default_rng(1).normal(size=12), np.repeat(np.arange(4), 3)
    one = two_way_interval(estimate_of(values[:, None], clusters))
    clusters_alone = t_interval(values.reshape(4, 3).mean(axis=1))
    assert (one.low, one.high, one.seeds) == pytest.approx((clusters_alone.low, clusters_alone.high, 1))
    assert math.isnan(two_way_interval(Estimate({})).mean)


def test_equal_values_have_no_width():
    alike = two_way_interval(estimate_of(np.full((6, 3), 0.5), np.arange(6)))
    assert (alike.low, alike.high) == (0.5, 0.5)


def test_unequal_clusters_count_less():
    assert effective_clusters([5, 5, 5, 5]) == 4
    assert effective_clusters([17, 1, 1, 1]) == pytest.approx(400 / 292)


KINDS = {
    # standard deviations on the probit scale, of cluster, item, and of the method's cluster, seed, and both
    "mixed": (0.8, 0.3, 0.4, 0.2, 0.3),
    "seeds": (0.8, 0.3, 0.1, 0.5, 0.2),
    "items": (0.8, 0.3, 0.6, 0.05, 0.2),
}


def simulated(generator: Generator, seeds: int, clusters: int, items: int, kind: str) -> tuple[Estimate, float]:
    """Return two methods' difference on right or wrong answers, and the true one for all seeds and items of the kind."""
    cluster_sd, item_sd, own_sd, seed_sd, both_sd = KINDS[kind]
    names = generator.integers(0, clusters, items)
    shared = generator.normal(0, cluster_sd, clusters)[names] + generator.normal(0, item_sd, items)
    right = []
    for base in (0.3, 0.6):
        own = generator.normal(0, own_sd, clusters)[names][:, None] + generator.normal(0, seed_sd, seeds)
        own = own + generator.normal(0, both_sd, (clusters, seeds))[names]
        right.append(base + shared[:, None] + own + generator.normal(size=(items, seeds)) > 0)
    scale = math.sqrt(1 + cluster_sd**2 + item_sd**2 + own_sd**2 + seed_sd**2 + both_sd**2)
    true = float(stats.norm.cdf(0.6 / scale) - stats.norm.cdf(0.3 / scale))
    return estimate_of(right[1].astype(float) - right[0], names), true


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("clusters", [20, 160])
def test_the_interval_covers_another_seed_and_other_items(kind: str, seeds: int, clusters: int):
    """Of the tiny suite's 200 items; the full table is in docs/decisions. Standard error of a share at 500: 0.01."""
    generator, covered = np.random.default_rng(seeds * clusters), 0
    for _ in range(500):
        estimate, true = simulated(generator, seeds, clusters, 200, kind)
        interval = two_way_interval(estimate)
        covered += interval.low <= true <= interval.high
    assert 0.92 - 0.01 <= covered / 500 <= 0.97 + 0.015


def test_unpaired_seeds_without_items_are_welchs_interval():
    base, other = [0.5, 0.6, 0.4, 0.55], [0.9, 0.7, 0.8]
    found = unpaired_interval(*(Estimate(dict(enumerate(values))) for values in (base, other)))
    peer: Any = stats.ttest_ind(other, base, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high))
    assert found.seeds == 3


def test_an_unpaired_interval_covers_other_seeds_and_other_items():
    """400 studies of 5 and 3 seeds, 30 clusters of 90 items; standard error 1.1 %."""
    draws, covered, studies = np.random.default_rng(5), 0, 400
    for _ in range(studies):
        clusters = draws.integers(0, 30, 90)
        easy, change = (draws.normal(0, spread, 30)[clusters] for spread in (0.3, 0.15))
        sides: list[Estimate] = []
        for seeds, level in ((5, easy), (3, easy + change)):
            by_seed, both = draws.normal(0, 0.05, seeds), draws.normal(0, 0.1, (30, seeds))[clusters]
            values = level[:, None] + by_seed + both + draws.normal(0, 0.3, (90, seeds))
            table = ItemTable(values, tuple(map(str, range(90))), tuple(map(str, clusters)))
            sides.append(Estimate(dict(enumerate(values.mean(axis=0).tolist())), {"task": table}))
        found = unpaired_interval(*sides)
        covered += found.low <= 0 <= found.high
    assert 0.915 <= covered / studies <= 0.985


def test_one_seed_on_a_side_leaves_the_interval_over_items():
    names = tuple("abcd")
    base = Estimate({0: 0.5}, {"task": ItemTable(np.array([[1.0], [0.0], [1.0], [0.0]]), names, names)})
    other = Estimate({0: 1.0, 1: 1.0}, {"task": ItemTable(np.ones((4, 2)), names, names)})
    found = unpaired_interval(base, other)
    assert (found.mean, found.seeds, found.errors[0].df) == (0.5, 1, 3)
    assert found.errors[0].error == pytest.approx(math.sqrt(4 / 3 * 4 * (0.5 / 4) ** 2))
