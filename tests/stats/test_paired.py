"""Paired differences and the arithmetic of estimates: by hand, and against plain numpy over random tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import t_interval
from harness.stats.paired import compare_estimates


def table(values: np.ndarray, prefix: str = "i", order: list[int] | None = None) -> ItemTable:
    """Return items (rows) by seeds (columns), each item its own cluster."""
    rows = order or list(range(len(values)))
    ids = tuple(f"{prefix}{row}" for row in rows)
    return ItemTable(values[rows], ids, ids)


def of_items(*tasks: np.ndarray) -> Estimate:
    """Return the mean over tasks of the means over items."""
    weighted = [values / len(tasks) for values in tasks]
    values = sum(each.mean(axis=0) for each in weighted)
    items = {f"task{place}": table(each, f"t{place}i") for place, each in enumerate(weighted)}
    return Estimate(dict(enumerate(np.asarray(values).tolist())), items)


def test_seeds_whose_differences_are_equal_have_the_p_value_of_a_sign_test():
    found = compare_estimates(Estimate(dict.fromkeys(range(3), 0.1)), Estimate({0: 0.3, 1: 0.3, 2: 0.3 - 0.1 + 0.1}))
    assert found.seeds.mean == pytest.approx(0.2)
    assert found.p == 0.25


def test_a_difference_is_over_the_seeds_that_both_have():
    found = compare_estimates(Estimate({0: 0.1, 1: 0.2, 2: math.nan}), Estimate({1: 0.5, 0: 0.3, 3: 0.9}))
    assert found.by_seed == pytest.approx({1: 0.3, 0: 0.2})
    assert (found.base, found.other) == pytest.approx((0.15, 0.4))
    assert found.seeds.half_width == pytest.approx(t_interval([0.2, 0.3]).half_width)


def test_items_are_aligned_by_their_id():
    values = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    one = Estimate({0: 2 / 3, 1: 2 / 3}, {"a": table(values)})
    turned = Estimate({0: 2 / 3, 1: 2 / 3}, {"a": table(values, order=[2, 0, 1])})
    assert np.abs((one - turned).items["a"].values).max() == 0
    others = Estimate({0: 2 / 3, 1: 2 / 3}, {"a": table(values, prefix="x")})
    assert (one - others).items == {}
    assert (one - 0.5).items.keys() == {"a"}
    assert (one - Estimate({0: 0.1, 1: 0.2})).items == {}


def test_products_and_quotients_keep_items_to_first_order():
    generator = np.random.default_rng(0)
    x, y = (of_items(generator.uniform(0.3, 0.9, (5, 3))) for _ in range(2))
    product, quotient = x * y, x / y
    assert list(product.by_seed.values()) == pytest.approx(list(x.values * y.values))
    assert list(quotient.by_seed.values()) == pytest.approx(list(x.values / y.values))
    step = 1e-6
    for seed in range(3):
        moved = x.items["task0"].values.copy()
        moved[2, seed] += step
        slope = (moved.mean(axis=0)[seed] / y.values[seed] - quotient.by_seed[seed]) / step
        # The same little change of one item, seen through the linear form.
        assert slope == pytest.approx(1 / y.values[seed] / 5, rel=1e-4)
    expected = x.items["task0"].values / y.values - y.items["task0"].values * x.values / y.values**2
    assert quotient.items["task0"].values == pytest.approx(expected)
    assert (1 / y).by_seed == pytest.approx({seed: 1 / value for seed, value in y.by_seed.items()})
    assert math.isnan((x / 0.0).by_seed[0])
