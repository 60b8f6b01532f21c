"""Forgetting and backward transfer by item, with and without guessing (Harmon et al. 2025, arXiv 2510.17776).

A mean hides items that are lost while others are gained. A model that guesses among k choices is sometimes right, so some
answers change although nothing was forgotten or learned; the adjusted figures subtract their expected share.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from harness.stats.significance import Flips


class ByItem(NamedTuple):
    """Shares of items, 0..1.

    `forgotten` items are right before and wrong after, `gained` ones the reverse. `chance` is the share of items that guessing
    changes in each direction; the adjusted shares are without it, and at least 0.
    """

    forgotten: float
    gained: float
    chance: float
    adjusted_forgotten: float
    adjusted_gained: float


def by_item(flips: Flips, right_before: int, choices: float = math.inf) -> ByItem:
    """Return the shares of items forgotten and gained; an item has `choices` possible answers, infinitely many in free text.

    The model: an item is known, or guessed evenly among k choices, so a guess is wrong k - 1 times as often as right. With
    accuracies a before and b after, and knowledge before and after taken as independent, guessing twice changes
    (1 - a)(1 - b) / (k - 1) of the items in each direction. This is the formula of the paper's released code
    (`Adj. Abs. Forgetting`), which also cuts at 0. If the same items stay unknown, guessing changes more items, so the
    adjusted shares are still too high. All are nan without items.
    """
    if not flips.items:
        return ByItem(*(math.nan,) * 5)
    before = right_before / flips.items
    after = (right_before - flips.lost + flips.gained) / flips.items
    forgotten, gained = flips.lost / flips.items, flips.gained / flips.items
    chance = (1 - before) * (1 - after) / (choices - 1) if choices > 1 else math.nan
    return ByItem(forgotten, gained, chance, *(max(0.0, share - chance) for share in (forgotten, gained)))
