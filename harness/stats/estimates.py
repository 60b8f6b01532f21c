"""A quantity by seed and by item, and its arithmetic; intervals, tests and verdicts are computed from it.

Every figure is a weighted sum of cells, and every cell is a mean over items. So a figure has a value for each seed, and each
item contributes to that value: `value_s = offset_s + sum over tasks of the mean over the task's items of x_is`. Sums,
differences and multiples of figures keep this form; a product or quotient keeps it to first order (the delta method).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.stats.intervals import Vector, effective_clusters


@dataclass(frozen=True, eq=False)
class ItemTable:
    """What each item of one task contributes: `values` (items, seeds), with the items' ids and clusters, both (items,).

    Items of one cluster are not independent (phrasings of one question). Without clusters, each item is its own cluster.
    """

    values: Vector
    ids: tuple[str, ...]
    clusters: tuple[str, ...]

    @property
    def effective(self) -> float:
        """The effective number of independent items, see `effective_clusters`."""
        return effective_clusters(np.unique(np.array(self.clusters), return_counts=True)[1])

    @property
    def averaged(self) -> ItemTable:
        """The mean over seeds of each item, as one column."""
        return ItemTable(self.values.mean(axis=1, keepdims=True), self.ids, self.clusters)

    def of_seeds(self, places: Sequence[int]) -> ItemTable:
        """Return the table of some seeds, by their column numbers."""
        return ItemTable(self.values[:, list(places)], self.ids, self.clusters)

    def scaled(self, factors: Vector | float) -> ItemTable:
        """Return the values times a factor, or times one factor per seed."""
        return ItemTable(self.values * factors, self.ids, self.clusters)

    def plus(self, other: ItemTable) -> ItemTable | None:
        """Return the sum item by item, in this table's order; None if the two do not have the same items."""
        if self.ids == other.ids:
            return ItemTable(self.values + other.values, self.ids, self.clusters)
        place = {item: row for row, item in enumerate(other.ids)}
        if len(place) != len(self.ids) or any(item not in place for item in self.ids):
            return None
        rows = [place[item] for item in self.ids]
        return ItemTable(self.values + other.values[rows], self.ids, self.clusters)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A quantity by seed; `items` is what each item contributes, by task, and is empty where answers were not stored.

    The columns of every item table are the seeds of `by_seed`, in the same order.
    """

    by_seed: Mapping[int, float]
    items: Mapping[str, ItemTable] = field(default_factory=dict[str, ItemTable])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that have a value."""
        return tuple(self.by_seed)

    @property
    def values(self) -> Vector:
        """The values (S,), in the order of the seeds."""
        return np.array(list(self.by_seed.values()), dtype=np.float64)

    @property
    def mean(self) -> float:
        """The mean over seeds; nan where there is none."""
        return float(self.values.mean()) if self.by_seed else math.nan

    def of_seeds(self, seeds: Sequence[int]) -> Estimate:
        """Return the estimate of some of its seeds, in the order given."""
        places = [self.seeds.index(seed) for seed in seeds]
        items = {task: table.of_seeds(places) for task, table in self.items.items()}
        return Estimate({seed: self.by_seed[seed] for seed in seeds}, items)

    def finite(self) -> Estimate:
        """Return the estimate of the seeds whose value is a finite number."""
        return self.of_seeds([seed for seed, value in self.by_seed.items() if math.isfinite(value)])

    def __neg__(self) -> Estimate:
        return self * -1.0

    def __add__(self, other: Estimate | float) -> Estimate:
        if not isinstance(other, Estimate):
            return Estimate({seed: value + other for seed, value in self.by_seed.items()}, self.items)
        one, two = _common(self, other)
        ones = np.ones(len(one.by_seed))
        return _combined(one, two, one.values + two.values, ones, ones)

    def __radd__(self, other: float) -> Estimate:
        return self + other

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self + -other

    def __rsub__(self, other: float) -> Estimate:
        return -self + other

    def __mul__(self, other: Estimate | float) -> Estimate:
        if not isinstance(other, Estimate):
            items = {task: table.scaled(other) for task, table in self.items.items()}
            return Estimate({seed: value * other for seed, value in self.by_seed.items()}, items)
        one, two = _common(self, other)
        return _combined(one, two, one.values * two.values, two.values, one.values)

    def __rmul__(self, other: float) -> Estimate:
        return self * other

    def __truediv__(self, other: Estimate | float) -> Estimate:
        if not isinstance(other, Estimate):
            return self * (1 / other if other else math.nan)
        one, two = _common(self, other)
        with np.errstate(divide="ignore", invalid="ignore"):
            return _combined(one, two, one.values / two.values, 1 / two.values, -one.values / two.values**2)

    def __rtruediv__(self, other: float) -> Estimate:
        return Estimate(dict.fromkeys(self.by_seed, other)) / self


def _common(one: Estimate, other: Estimate) -> tuple[Estimate, Estimate]:
    """Return both estimates for the seeds that both have."""
    seeds = [seed for seed in one.by_seed if seed in other.by_seed]
    return one.of_seeds(seeds), other.of_seeds(seeds)


def _combined(one: Estimate, two: Estimate, values: Vector, by_one: Vector, by_two: Vector) -> Estimate:
    """Return a function of two estimates from its values (S,) and its derivatives by each of them (S,).

    The result has items if both sides have them, and the same ones in tasks that both have. A side without items still counts
    if its value is the same for all seeds, like a number: then the result has the other side's items.
    """
    by_seed = dict(zip(one.by_seed, values.tolist(), strict=True))
    if not (one.items or _constant(one)) or not (two.items or _constant(two)):
        return Estimate(by_seed)
    items = {task: table.scaled(by_one) for task, table in one.items.items()}
    for task, table in two.items.items():
        scaled = table.scaled(by_two)
        summed = items[task].plus(scaled) if task in items else scaled
        if summed is None:
            return Estimate(by_seed)
        items[task] = summed
    return Estimate(by_seed, items)


def _constant(estimate: Estimate) -> bool:
    return len(estimate.by_seed) > 0 and float(np.ptp(estimate.values)) == 0
