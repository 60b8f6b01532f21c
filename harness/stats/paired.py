"""Paired differences: two methods, two stages of a run, or two machines on the same items.

Every quantity has a difference for each seed and a share in it for each item, and the two stay apart: the t interval is over
the seeds' differences, and the interval over items is of the items' differences with the seeds given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness.stats.estimates import Estimate, Vector, pooled
from harness.stats.intervals import NOTHING, ROUNDING, Interval, item_interval, t_interval
from harness.stats.power import detectable
from harness.stats.sampling import Variances, variances
from harness.stats.significance import Flips, p_value

UNKNOWN = Variances(math.nan, math.nan)


@dataclass(frozen=True)
class Difference:
    """Other minus base of one quantity, in 0..1 (or its own unit), with everything that says how sure it is.

    `seeds` is the mean with its t interval over seeds, `items` the same mean with its interval over items, the
    seeds given. `flips` holds each seed's items lost and gained, for quantities that are right or wrong by item.
    `detectable` is the smallest difference found with 80 % power: over these seeds, and over these items in one seed.
    `by_seed` is the difference by seed, `items_by_seed` the items' differences of each of them.
    """

    base: float
    other: float
    seeds: Interval
    items: Interval = NOTHING
    variances: Variances = UNKNOWN
    flips: tuple[Flips, ...] = ()
    item_count: int = 0
    detectable_seeds: float = math.nan
    detectable_items: float = math.nan
    by_seed: Mapping[int, float] = field(default_factory=dict[int, float])
    items_by_seed: tuple[Vector, ...] = ()

    @property
    def p(self) -> float:
        """The paired t test over seeds; nan for fewer than two seeds or seeds whose differences are equal."""
        return p_value(self.seeds)

    @property
    def items_or_mean(self) -> Interval:
        """The interval over items, the mean alone where answers were not kept."""
        return self.items if self.items.seeds else self.seeds

    @property
    def mcnemar(self) -> float:
        """The smallest of the seeds' exact McNemar p values times their number: seeds share items, so no pooling."""
        return min(1.0, len(self.flips) * min(each.p_value for each in self.flips)) if self.flips else math.nan

    @property
    def lost(self) -> int:
        """Items right for base and wrong for other, added over seeds."""
        return sum(each.lost for each in self.flips)

    @property
    def gained(self) -> int:
        """Items wrong for base and right for other, added over seeds."""
        return sum(each.gained for each in self.flips)


def compare(base: Estimate, other: Estimate, flips: Sequence[Flips] = ()) -> Difference:
    """Return other minus base over the seeds that both have; `flips` are the items lost and gained of each seed."""
    base, other = base.finite(), other.finite()
    change = other - base
    seeds = change.seeds
    spread = float(change.values.std(ddof=1)) if len(seeds) > 1 else math.nan
    result = Difference(
        base.of_seeds(seeds).mean,
        other.of_seeds(seeds).mean,
        t_interval(change.values),
        detectable_seeds=detectable(spread, len(seeds)) if spread > ROUNDING else math.nan,
        by_seed=change.by_seed,
    )
    if not change.items:
        return result
    by_seed = tuple(pooled(change).T)
    items = len(by_seed[0])
    within = float(np.sqrt(np.mean([values.var(ddof=1) for values in by_seed]))) if items > 1 else math.nan
    return replace(
        result,
        items=item_interval(pooled(change).mean(axis=1)),
        variances=variances(by_seed) if items > 1 else UNKNOWN,
        flips=tuple(flips),
        item_count=items,
        detectable_items=detectable(within, items) if within > ROUNDING else math.nan,
        items_by_seed=by_seed,
    )
