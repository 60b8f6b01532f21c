"""Paired differences: two methods, two stages of a run, or two machines on the same items.

Every quantity has a difference for each seed and a share in it for each item. The interval is for another seed and other items
(`two_way_interval`); the interval over seeds with these items, and the one over items with these seeds, are its two parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.stats.estimates import Estimate
from harness.stats.intervals import NOTHING, Interval, has_width, interval_from, t_interval
from harness.stats.power import detectable_effect
from harness.stats.significance import Flips, p_value
from harness.stats.two_way import (
    Variances,
    components,
    two_way_interval,
    unpaired_components,
    unpaired_interval,
    variances,
)

UNKNOWN = Variances(math.nan, math.nan)


@dataclass(frozen=True)
class Difference:
    """Other minus base of one quantity, in 0..1 (or its own unit), with everything that says how sure it is.

    - `interval`: for another seed and other items. Without stored answers it is over seeds, with one seed over its items.
    - `seeds`, `items`: the same mean with its interval only over seeds, with the items fixed, and only over clusters
      of items, with the seeds fixed.
    - `flips`: each seed's items lost and gained, for quantities that are right or wrong by item.
    - `detectable`: the smallest difference that the interval would exclude zero for in 80 % of repeats.
    - `clusters`: how many independent items there are, of `item_count`; see `effective_clusters`.
    - `by_seed`: the difference by seed; `items_by_seed`: its interval over items, by seed.
    """

    base: float
    other: float
    interval: Interval
    seeds: Interval
    items: Interval = NOTHING
    variances: Variances = UNKNOWN
    flips: tuple[Flips, ...] = ()
    item_count: int = 0
    clusters: float = 0.0
    detectable: float = math.nan
    by_seed: Mapping[int, float] = field(default_factory=dict[int, float])
    items_by_seed: Mapping[int, Interval] = field(default_factory=dict[int, Interval])

    def of_unit(self, unit: str) -> Difference:
        """Return the difference with its intervals within the bounds of a difference of two quantities of a unit."""
        return replace(
            self,
            interval=self.interval.of_difference(unit),
            seeds=self.seeds.of_difference(unit),
            items=self.items.of_difference(unit),
            items_by_seed={seed: each.of_difference(unit) for seed, each in self.items_by_seed.items()},
        )

    @property
    def p(self) -> float:
        """The two-sided p value of the test that `interval` inverts, see `p_value`; nan where there is no interval."""
        return p_value(self.interval)

    @property
    def p_of_several(self) -> float:
        """The p value for a correction over several tests: the larger of `p` and that of the t test over seeds.

        A correction looks far into the tails, where Satterthwaite's degrees of freedom promise too much at three seeds.
        """
        return max(self.p, p_value(self.seeds)) if has_width(self.seeds, 2) else self.p

    @property
    def lost(self) -> int:
        """Items right for base and wrong for other, added over seeds."""
        return sum(each.lost for each in self.flips)

    @property
    def gained(self) -> int:
        """Items wrong for base and right for other, added over seeds."""
        return sum(each.gained for each in self.flips)


def compare_estimates(base: Estimate, other: Estimate, flips: Sequence[Flips] = ()) -> Difference:
    """Return other minus base over the seeds that both have; `flips` are the items lost and gained of each seed."""
    base, other = base.finite(), other.finite()
    change = other - base
    interval = two_way_interval(change)
    known = has_width(interval, 1)
    result = Difference(
        base.of_seeds(change.seeds).mean,
        other.of_seeds(change.seeds).mean,
        interval,
        t_interval(change.values),
        detectable=detectable_effect(interval.error, interval.df) if known else math.nan,
        by_seed=change.by_seed,
    )
    if not change.items:
        return result
    return replace(
        result,
        items=over_items(change),
        variances=variances(change),
        flips=tuple(flips),
        item_count=sum(len(table.ids) for table in change.items.values()),
        clusters=sum(table.effective for table in change.items.values()),
        items_by_seed={seed: over_items(change.of_seeds([seed])) for seed in change.seeds},
    )


def compare_unpaired(base: Estimate, other: Estimate) -> Difference:
    """Return other minus base where equal seeds are not a pair; there is no difference by seed."""
    base, other = base.finite(), other.finite()
    interval = unpaired_interval(base, other)
    result = Difference(
        base.mean,
        other.mean,
        interval,
        unpaired_interval(Estimate(base.by_seed), Estimate(other.by_seed)),
        detectable=detectable_effect(interval.error, interval.df) if has_width(interval, 1) else math.nan,
    )
    found = unpaired_components(base, other) if interval.seeds else None
    if found is None:
        return result
    return replace(
        result,
        items=interval_from(interval.mean, math.sqrt(found.clusters), found.df_clusters, 1),
        item_count=sum(len(table.ids) for table in base.items.values()),
        clusters=sum(table.effective for table in base.items.values()),
    )


def over_items(change: Estimate) -> Interval:
    """Return the mean with its interval over clusters of items, the seeds given; without bounds where items do not say."""
    found = components(change)
    if found is None:
        return replace(NOTHING, mean=change.mean, seeds=1)
    return interval_from(change.mean, math.sqrt(found.clusters), found.df_clusters, 1)
