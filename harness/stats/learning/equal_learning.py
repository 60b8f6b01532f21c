"""Retention at equal learning: what two methods kept when they had learned equally much, read from their learning curves.

A method that learns less has less to forget, so scores at the end of a stage say little about forgetting. A learning curve
has both at every point of a stage: the score of the stage's own task, and the change of the other tasks since the stage began.
For each seed the difference in retention is averaged over the learning that both methods reach.

A comparison is only fair if the curves are read in the right way; `docs/decisions/` has the simulation behind each choice.
- Learning is made monotone by isotonic regression over the steps, and a level is read at the first step that reaches it. The
  steps are known exactly, so noise in the scores does not bias the comparison; regressing retention on measured learning
  would (regression dilution).
- Both curves are read at the same levels: those of the method with fewer points. A straight line between two distant points
  then has the same error for both methods, so learning in larger steps is not an advantage.
- The upper tenth of the common range is left out: where learning levels off, noise decides when a level is first reached.
- A method that learns the whole common range between two points has no curve there, so it is not compared.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np

from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import Vector

LEAST = 0.05  # the smallest common range of learning, as a share
UPPER = 0.9  # the part of the common range that is compared
NO_COMMON_LEARNING = "not comparable: no common learning"
TOO_FEW_POINTS = "not comparable: too few points"  # a method learned the whole common range between two points


@dataclass(frozen=True, eq=False)
class Curve:
    """One stage of one run, at K points of its training.

    - `learned` (K,): the score of the stage's own task, 0..1.
    - `kept`: for each other task, the score of each item at each point, `values` (items, K).
    """

    learned: Vector
    kept: Mapping[str, ItemTable]

    @property
    def reached(self) -> Vector:
        """The learning reached at each point (K,): the nondecreasing least-squares fit of `learned`.

        It is isotonic regression (Barlow et al. 1972, Statistical Inference under Order Restrictions).
        """
        from scipy.optimize import isotonic_regression  # takes a second to import

        fit: Any = isotonic_regression(self.learned)
        return np.asarray(fit.x, dtype=np.float64)

    @property
    def change(self) -> Vector:
        """The mean change of the other tasks since the stage began (K,); negative if they lost."""
        scores = [table.values.mean(axis=0) for table in self.kept.values()]
        return np.mean([score - score[0] for score in scores], axis=0)


class CommonRange(NamedTuple):
    """The learning that two curves of one seed both reach: from `low` to `high`, 0..1.

    `points` is the number of levels strictly between these two on the curve that has fewer of them.
    """

    low: float
    high: float
    points: float


@dataclass(frozen=True)
class AtEqualLearning:
    """Two methods' retention at equal learning in one stage.

    `base` and `other` are the change of the other tasks since the stage began, averaged over the learning that both reach;
    `common` is that learning, by seed. A seed without common learning is in none of them, but `seeds` counts it.
    """

    base: Estimate
    other: Estimate
    common: Mapping[int, CommonRange]
    seeds: int

    @property
    def difference(self) -> Estimate:
        """Other minus base: positive where the other method kept more."""
        return self.other - self.base

    @property
    def obstacle(self) -> str:
        """Why the two are not comparable; empty if they are.

        At least half of the seeds have no common learning, or its range contains less than one point on average.
        """
        if 2 * len(self.common) <= self.seeds:
            return NO_COMMON_LEARNING
        return TOO_FEW_POINTS if float(np.mean([each.points for each in self.common.values()])) < 1 else ""


def at_equal_learning(base: Mapping[int, Curve], other: Mapping[int, Curve]) -> AtEqualLearning:
    """Return what two methods kept in one stage at equal learning, for the seeds that both have.

    Both curves of a seed need the same tasks and items. A method's value is the mean over levels L of R(t(L)) - R(0), with R
    the retained tasks' mean score and t(L) the first step at which the method has learned L: the area under its curve over
    the common range, divided by the range's width. Items are those of the retained tasks; the steps t(L) count as fixed.
    """
    sides: tuple[dict[int, tuple[Curve, Vector]], ...] = ({}, {})
    common: dict[int, CommonRange] = {}
    paired = [seed for seed in base if seed in other]
    for seed in paired:
        curves = (base[seed], other[seed])
        fits = [curve.reached for curve in curves]
        levels = _common_levels(fits)
        if levels is None:
            continue
        common[seed] = CommonRange(float(levels[0]), float(levels[-1]), len(levels) - 2)
        gaps = np.diff(levels)
        weights = (np.append(gaps, 0.0) + np.append(0.0, gaps)) / (2 * gaps.sum())  # trapezoidal rule
        for side, curve, fit in zip(sides, curves, fits, strict=True):
            side[seed] = (curve, weights @ _first_reached(fit, levels))
    return AtEqualLearning(_estimate(sides[0]), _estimate(sides[1]), common, len(paired))


def over_stages(stages: Sequence[AtEqualLearning]) -> AtEqualLearning:
    """Return the mean over stages, for seeds with common learning in every stage; `common` is the mean of the ranges.

    `seeds` is the number of the stage with the fewest: a seed that has not trained a later stage does not lack learning there.
    """
    base, other = (reduce(add, sides) / len(stages) for sides in zip(*((s.base, s.other) for s in stages), strict=True))
    common: dict[int, CommonRange] = {}
    for seed in base.by_seed:
        ranges = [stage.common[seed] for stage in stages]
        common[seed] = CommonRange(*(sum(column) / len(stages) for column in zip(*ranges, strict=True)))
    return AtEqualLearning(base, other, common, min(stage.seeds for stage in stages))


def _common_levels(fits: Sequence[Vector]) -> Vector | None:
    """Return the levels of learning at which both curves are read, in order; None where they share less than LEAST.

    They begin at the higher of the two starts and end at UPPER of the way to the lower of the two ends. In between are the
    levels of the curve that has fewer of them there.
    """
    low, high = max(fit[0] for fit in fits), min(fit[-1] for fit in fits)
    high = low + UPPER * (high - low)
    if high - low < LEAST:
        return None
    inside = [np.unique(fit[(fit > low) & (fit < high)]) for fit in fits]
    return np.array([low, *min(inside, key=lambda levels: (len(levels), levels.tolist())), high])


def _first_reached(fit: Vector, levels: Vector) -> Vector:
    """Return (levels, K): for each level, the weights that interpolate between the points where a curve first reaches it."""
    rows = np.zeros((len(levels), len(fit)))
    for row, level in zip(rows, levels.tolist(), strict=True):
        after = min(bisect_left(fit.tolist(), level), len(fit) - 1)
        if after == 0:
            row[0] = 1.0
            continue
        share = (level - fit[after - 1]) / (fit[after] - fit[after - 1])
        row[after - 1], row[after] = 1 - share, share
    return rows


def _estimate(sides: Mapping[int, tuple[Curve, Vector]]) -> Estimate:
    """Return one method's estimate from its curve and point weights (K,) by seed; retained tasks have equal weight."""
    values = {seed: float(curve.change @ weights) for seed, (curve, weights) in sides.items()}
    if not sides:
        return Estimate({})
    first = next(iter(sides.values()))[0]
    items: dict[str, ItemTable] = {}
    for task, table in first.kept.items():
        columns = [
            (curve.kept[task].values - curve.kept[task].values[:, :1]) @ weights for curve, weights in sides.values()
        ]
        items[task] = ItemTable(np.stack(columns, axis=1) / len(first.kept), table.ids, table.clusters)
    return Estimate(values, items)
