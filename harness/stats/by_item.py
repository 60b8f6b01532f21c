"""Forgetting and backward transfer by item, with and without what guessing explains (Harmon et al. 2025, arXiv 2510.17776).

A mean hides items that are lost while others are gained. Of k choices a model that guesses is right by chance, so some items
turn without anything being forgotten or learned; the adjusted figures subtract how many.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from harness.stats.significance import Flips


class ByItem(NamedTuple):
    """Shares of items, 0..1.

    `forgotten` is right before and wrong after (1→0), `gained` the reverse (0→1); `adjusted` are without `chance`, the share
    of items that guessing turns in each direction.
    """

    forgotten: float
    gained: float
    chance: float
    adjusted_forgotten: float
    adjusted_gained: float


def by_item(flips: Flips, right_before: int, choices: float = math.inf) -> ByItem:
    """Return the shares of items that turned, `choices` is how many an item has; answers in free text have infinitely many.

    A model knows an item or guesses evenly, so a guess is wrong k - 1 times as often as right. With accuracies a before and b
    after, and what is known before and after taken as independent, guessing twice turns (1 - a)(1 - b) / (k - 1) of the items
    in each direction: the formula of the paper's released code (`Adj. Abs. Forgetting`), which cuts at 0. Where the same
    items stay unknown, guessing turns more than that, so the adjusted figures are still too high. nan without items.
    """
    if not flips.items:
        return ByItem(*(math.nan,) * 5)
    before = right_before / flips.items
    after = (right_before - flips.lost + flips.gained) / flips.items
    forgotten, gained = flips.lost / flips.items, flips.gained / flips.items
    chance = (1 - before) * (1 - after) / (choices - 1) if choices > 1 else math.nan
    return ByItem(forgotten, gained, chance, *(max(0.0, share - chance) for share in (forgotten, gained)))
