"""Paired differences: two methods, two stages of a run, or two machines on the same items.

A difference has a value for each seed, to which each item contributes. Its interval is for another seed and other items
(`two_way_interval`). Two more intervals show the parts: over seeds with these items, and over items with these seeds.
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
    """Other minus base of one quantity, as a share (or in its own unit), with its intervals and tests.

    - `base`, `other`: the means of the two sides.
    - `interval`: for another seed and other items; over seeds if answers are not stored, over items if there is one seed.
    - `seeds`, `items`: the same mean with its interval over seeds with the items fixed, and over clusters of items with the
      seeds fixed.
    - `variances`: the variance by its source.
    - `flips`: each seed's items lost and gained, for quantities in which an item is right or wrong.
    - `item_count`, `clusters`: the number of items, and of independent ones among them, see `effective_clusters`.
    - `detectable`: the smallest true difference for which the interval would exclude zero in 80 % of repetitions.
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
        """Return the difference with its intervals cut at the bounds of differences of two quantities of a unit."""
        return replace(
            self,
            interval=self.interval.of_difference(unit),
            seeds=self.seeds.of_difference(unit),
            items=self.items.of_difference(unit),
            items_by_seed={seed: each.of_difference(unit) for seed, each in self.items_by_seed.items()},
        )

    @property
    def p(self) -> float:
        """The two-sided p value of the test that belongs to `interval`, see `p_value`; nan where there is no interval."""
        return p_value(self.interval)

    @property
    def p_of_several(self) -> float:
        """The p value for a correction over several tests: the larger of `p` and that of the t test over seeds.

        A correction uses the far tails, where Satterthwaite's degrees of freedom give too small p values at three seeds.
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
    """Return other minus base over the seeds that both have; `flips` are each seed's items lost and gained."""
    base, other = base.finite(), other.finite()
    change = other - base
    interval = two_way_interval(change)
    known = has_width(interval, 1)
    result = Difference(
        base.of_seeds(change.seeds).mean,
        other.of_seeds(change.seeds).mean,
        interval,
        t_interval(change.values),
        detectable=detectable_effect(interval.errors) if known else math.nan,
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
    """Return other minus base where equal seeds are not paired, so that there is no difference by seed."""
    base, other = base.finite(), other.finite()
    interval = unpaired_interval(base, other)
    result = Difference(
        base.mean,
        other.mean,
        interval,
        unpaired_interval(Estimate(base.by_seed), Estimate(other.by_seed)),
        detectable=detectable_effect(interval.errors) if has_width(interval, 1) else math.nan,
    )
    parts = unpaired_components(base, other) if interval.seeds else None
    if parts is None:
        return result
    return replace(
        result,
        items=interval_from(interval.mean, math.sqrt(parts.clusters), parts.df_clusters, 1),
        item_count=sum(len(table.ids) for table in base.items.values()),
        clusters=sum(table.effective for table in base.items.values()),
    )


def over_items(change: Estimate) -> Interval:
    """Return the mean with its cluster-robust t interval over items, with the seeds fixed; no bounds without items.

    The variance of a task's mean is `G / (G - 1) sum_c u_c^2` with `u_c = sum_{i in c} (x_i - mean) / n` over its G clusters
    (Liang and Zeger 1986), and tasks add up. The degrees of freedom come from `effective_clusters`, so few or unequal
    clusters widen the interval. If each item is its own cluster, this is Student's t interval over items.
    """
    parts = components(change)
    if parts is None:
        return replace(NOTHING, mean=change.mean, seeds=1)
    return interval_from(change.mean, math.sqrt(parts.clusters), parts.df_clusters, 1)
