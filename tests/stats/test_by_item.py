"""Forgetting and backward transfer by item: values by hand, and guessing that explains all of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.stats.by_item import by_item
from harness.stats.significance import Flips, flips


def test_the_adjustment_is_worked_by_hand():
    # 100 items, 60 right before, 20 lost, 10 gained: a = 0.6, b = 0.5, of 5 choices 0.4 * 0.5 / 4 = 0.05 turn by chance
    assert by_item(Flips(20, 10, 100), 60, 5) == pytest.approx((0.2, 0.1, 0.05, 0.15, 0.05))
    assert by_item(Flips(2, 1, 100), 60, 5)[3:] == (0, 0)


def test_free_text_has_no_chance_and_one_choice_no_adjustment():
    assert by_item(Flips(20, 10, 100), 60) == pytest.approx((0.2, 0.1, 0, 0.2, 0.1))
    assert math.isnan(by_item(Flips(20, 10, 100), 60, 1).chance)
    assert math.isnan(by_item(Flips(0, 0, 0), 0).forgotten)


@pytest.mark.parametrize(("choices", "known"), [(2, 0.3), (4, 0.0), (4, 0.6)])
def test_what_guessing_turns_is_all_that_turns_where_nothing_is_forgotten(choices: int, known: float):
    generator, items = np.random.default_rng(choices), 200_000
    knows = generator.random(items) < known
    before, after = (np.where(knows, 1.0, generator.random(items) < 1 / choices) for _ in range(2))
    found = by_item(flips(before, after), int(before.sum()), choices)
    assert found.forgotten > 0.05
    assert found.adjusted_forgotten == pytest.approx(0, abs=0.005)
    assert found.adjusted_gained == pytest.approx(0, abs=0.005)
