"""One interval for another seed and other items: variance by seeds, by clusters of items, and by both.

Every seed answers the same items, so a mean over seeds and items varies with both. Its variance is that of a crossed
random-effects model, estimated from mean squares, with Satterthwaite's degrees of freedom (Satterthwaite 1946; Cameron,
Gelbach and Miller 2011 for two-way clustering). Clusters that do not vary beyond noise are left out, because including them
makes the interval too wide. Where seeds vary beyond noise, the interval is at least as wide as the one over seeds alone,
because with three seeds Satterthwaite's degrees of freedom promise too much. Where the part by seeds is more than twice the
residual, there are fewer degrees of freedom. The choice rests on simulated coverage; `docs/decisions/` has the tables.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import special

from harness.stats.estimates import Estimate, ItemTable, Vector
from harness.stats.intervals import (
    LEVEL,
    NOTHING,
    Interval,
    StandardError,
    effective_clusters,
    interval_from,
    t_interval,
)

SMALL = 1e-18  # a variance below this is rounding
POOLED = 0.25  # the level of the preliminary test that Bancroft (1964) advises


class VarianceParts(NamedTuple):
    """Parts of the variance of a mean over S seeds and C clusters of items, with their degrees of freedom.

    - `seeds`: from the seeds' means, s^2 / S. It includes `both`, because the seeds' means do.
    - `clusters`: from the clusters' means over seeds. It includes `both` too.
    - `both`: from the residual after seed and cluster.
    - `within`: the variance of one seed's mean from its clusters of items, averaged over seeds.
    """

    seeds: float
    clusters: float
    both: float
    within: float
    df_seeds: float
    df_clusters: float

    @property
    def clusters_vary(self) -> bool:
        """Whether clusters differ beyond the residual, by an F test at level `POOLED`.

        If they do not, the seeds' means contain the whole variance. It is also True if the seeds' means are equal, because
        then they show no variance at all, or if there is no residual to test against.
        """
        if self.both <= 0 or self.seeds < SMALL:
            return True
        limit = special.fdtri(self.df_clusters, self.df_clusters * self.df_seeds, 1 - POOLED)
        return self.clusters / self.both >= float(limit)

    @property
    def seeds_vary(self) -> bool:
        """Whether seeds differ more than the residual explains: the estimated variance between seeds is above zero."""
        return self.seeds > self.both

    @property
    def total(self) -> float:
        """The variance of the mean for another seed and other items: each part counted once, and at least either part."""
        if not self.clusters_vary:
            return self.seeds
        return max(self.seeds + self.clusters - self.both, self.seeds, self.clusters)

    @property
    def df(self) -> float:
        """The degrees of freedom of the total, see `degrees_of_freedom`."""
        if not self.clusters_vary:
            return self.df_seeds
        seeds, clusters, both = np.array([[self.seeds], [self.clusters], [self.both]])
        return float(degrees_of_freedom(seeds, clusters, both, self.df_seeds, self.df_clusters)[0])


def degrees_of_freedom(seeds: Vector, clusters: Vector, both: Vector, df_seeds: float, df_clusters: float) -> Vector:
    """Return the degrees of freedom of seeds + clusters - both: Satterthwaite's, or where seeds clearly vary, fewer.

    Few seeds estimate their part badly. Where it comes out too small, the interval is narrow, and Satterthwaite's degrees of
    freedom are too many at the same time: with five seeds, two equal methods are then found to differ in up to 5.7 % of
    studies. So where the part by seeds is more than twice the residual, the degrees of freedom are at most those for 2.5 times
    this part. They are nan where nothing varies.
    """

    def satterthwaite(seeds: Vector) -> Vector:
        total = np.maximum(seeds + clusters - both, np.maximum(seeds, clusters))
        parts = seeds**2 / df_seeds + clusters**2 / df_clusters + both**2 / (df_seeds * df_clusters)
        return total**2 / np.where(parts > 0, parts, math.nan)

    found = satterthwaite(seeds)
    return np.where(seeds > 2 * both, np.minimum(found, satterthwaite(2.5 * seeds)), found)


class Variances(NamedTuple):
    """The variance of a mean paired difference by its source; with one seed, only that of items is known.

    `items` is the variance of one seed's mean from its clusters of items, averaged over seeds. `seeds` is the variance between
    single seeds beyond noise: max(0, s_mean^2 - r / C) with r the residual mean square of a two-way analysis of variance.
    Every seed answers the same items, so an item that changes equally for all seeds moves all means together and is not noise
    between them.
    """

    items: float
    seeds: float


def two_way_interval(estimate: Estimate, level: float = LEVEL) -> Interval:
    """Return the mean and its t interval for another seed and other items.

    Without items it is the t interval over seeds, and with a single seed the interval over clusters of items.
    """
    if not estimate.by_seed:
        return NOTHING
    parts, seeds = components(estimate), len(estimate.by_seed)
    return t_interval(estimate.values, level) if parts is None else _interval(estimate.mean, parts, seeds, level)


def unpaired_interval(base: Estimate, other: Estimate, *, level: float = LEVEL) -> Interval:
    """Return other minus base where items are paired and seeds are not, as when equal seeds start from different weights.

    Without items it is Welch's t interval over seeds. The interval's `seeds` is the number of the side with fewer.
    """
    if not base.by_seed or not other.by_seed:
        return NOTHING
    mean, seeds = other.mean - base.mean, min(len(base.by_seed), len(other.by_seed))
    if (parts := unpaired_components(base, other)) is not None:
        return _interval(mean, parts, seeds, level)
    if seeds < 2:
        return replace(NOTHING, mean=mean, seeds=seeds)
    variance, df = _welch(base, other)
    return interval_from(mean, variance**0.5, df, seeds, level)


def _interval(mean: float, parts: VarianceParts, seeds: int, level: float) -> Interval:
    variance = parts.within if seeds < 2 else parts.total
    if variance < SMALL:
        return Interval(mean, mean, mean, seeds)
    if seeds < 2:
        return interval_from(mean, math.sqrt(variance), parts.df_clusters, seeds, level)
    over_seeds = StandardError(math.sqrt(parts.seeds), parts.df_seeds) if parts.seeds_vary else None
    return interval_from(mean, math.sqrt(variance), parts.df, seeds, level, least=over_seeds)


def unpaired_components(base: Estimate, other: Estimate) -> VarianceParts | None:
    """Return the parts of the variance of other minus base, with independent seeds and paired items; None without equal items.

    The parts `seeds` and `both` are the sums of the two sides'. The part `clusters` comes from each item's difference between
    its two means over seeds.
    """
    sides = components(base), components(other)
    means = [
        Estimate({0: each.mean}, {task: table.averaged for task, table in each.items.items()}) for each in (base, other)
    ]
    paired = components(means[1] - means[0])
    if sides[0] is None or sides[1] is None or paired is None or base.items.keys() != other.items.keys():
        return None
    seeds, df_seeds = _welch(base, other)
    both = sides[0].both + sides[1].both
    return VarianceParts(seeds, paired.clusters, both, paired.within, df_seeds, paired.df_clusters)


def _welch(base: Estimate, other: Estimate) -> tuple[float, float]:
    """Return the variance of a difference of two independent means over seeds, and its degrees of freedom (Welch 1947)."""
    if min(len(base.by_seed), len(other.by_seed)) < 2:
        return math.nan, math.nan
    parts = [float(each.values.var(ddof=1)) / len(each.by_seed) for each in (base, other)]
    squares = sum(part**2 / (len(each.by_seed) - 1) for part, each in zip(parts, (base, other), strict=True))
    fewest = min(len(base.by_seed), len(other.by_seed)) - 1
    return sum(parts), sum(parts) ** 2 / squares if squares else fewest


def components(estimate: Estimate) -> VarianceParts | None:
    """Return the parts of the variance of an estimate's mean; None without items, or if a task has a single cluster.

    Tasks are strata: their parts add up. Clusters of unequal size count as `effective_clusters`.
    """
    seeds, tables = len(estimate.by_seed), [_complete(table) for table in estimate.items.values()]
    names = [np.unique(np.array(table.clusters), return_inverse=True)[1] for table in tables]
    if not tables or any(not len(each) or each.max() == 0 for each in names):
        return None
    clusters = both = within = df = 0.0
    for table, name in zip(tables, names, strict=True):
        sizes, items = np.bincount(name), len(name)
        factor = len(sizes) / (len(sizes) - 1)
        shares = _by_cluster(table.values - table.values.mean(), name)
        means, own = shares.mean(axis=1), table.values.mean(axis=0)
        left = shares - means[:, None] - np.outer(sizes / items, own - own.mean())
        clusters += factor * float((means**2).sum())
        both += factor * float((left**2).sum()) / (seeds * (seeds - 1)) if seeds > 1 else 0.0
        within += factor * float((_by_cluster(table.values - own, name) ** 2).sum()) / seeds
        df += effective_clusters(sizes) - 1
    between = float(estimate.values.var(ddof=1)) / seeds if seeds > 1 else math.nan
    return VarianceParts(between, clusters, both, within, seeds - 1, df)


def variances(estimate: Estimate) -> Variances:
    """Return the variance of an estimate by its source, see `Variances`; nan where items or seeds are too few."""
    parts = components(estimate)
    if parts is None:
        return Variances(math.nan, math.nan)
    seeds = len(estimate.by_seed)
    return Variances(parts.within, max(0.0, seeds * (parts.seeds - parts.both)) if seeds > 1 else math.nan)


def _complete(table: ItemTable) -> ItemTable:
    """Return the items that have a score for every seed."""
    rows = np.flatnonzero(~np.isnan(table.values).any(axis=1))
    if len(rows) == len(table.ids):
        return table
    return ItemTable(table.values[rows], tuple(table.ids[i] for i in rows), tuple(table.clusters[i] for i in rows))


def _by_cluster(values: Vector, names: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Vector:
    """Return (clusters, seeds): the sum of each cluster for each seed, divided by the number of items."""
    return np.stack([np.bincount(names, column) for column in values.T], axis=1) / len(values)
