"""Forgetting and backward transfer by item: values by hand, and guessing that explains all of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.stats.by_item import by_item
from harness.stats.significance import Flips, find_flips


def test_the_adjustment_is_worked_by_hand():
    # 100 items, 60 right before, 20 lost, 10 gained: a = 0.6, b = 0.5, of 5 choices 0.4 * 0.5 / 4 = 0.05 turn by chance
    assert by_item(Flips(20, 10, 100), 60, 5) == pytest.approx((0.2, 0.1, 0.05, 0.15, 0.05))
    assert by_item(Flips(2, 1, 100), 60, 5)[3:] == (0, 0)


def test_free_text_has_no_chance_and_one_choice_no_adjustment():
    assert by_item(Flips(20, 10, 100), 60) == pytest.approx((0.2, 0.1, 0, 0.2, 0.1))
    assert math.isnan(by_item(Flips(20, 10, 100), 60, 1).chance)
    assert math.isnan(by_item(Flips(0, 0, 0), 0).forgotten)


@pytest.mark.parametrize(("choices", "known"), [(2, 0.3), (4, 0.0), (4, 0.6)])
def test_chance_is_the_share_that_two_guesses_turn_where_what_is_known_is_independent(choices: int, known: float):
    generator, items = np.random.default_rng(choices), 200_000
    knows = [generator.random(items) < known for _ in range(2)]
    guesses = [generator.random(items) < 1 / choices for _ in range(2)]
    before, after = (np.where(sure, 1.0, guess) for sure, guess in zip(knows, guesses, strict=True))
    found = by_item(find_flips(before, after), int(before.sum()), choices)
    turned = ~knows[0] & ~knows[1] & guesses[0] & ~guesses[1]
    assert found.chance == pytest.approx(turned.mean(), abs=0.003)
    if not known:
        assert (found.adjusted_forgotten, found.adjusted_gained) == pytest.approx((0, 0), abs=0.003)
