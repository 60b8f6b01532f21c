"""Simulate studies of two methods whose true difference is known: right or wrong answers, clusters of items, learning curves.

They measure whether tests and intervals keep their promises: `benchmarks/simulation/coverage.py` writes the table, and tests
repeat a small part. Answers come from a probit model, in which items, clusters, seeds and their interactions vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import Vector
from harness.stats.learning.equal_learning import Curve

Generator = np.random.Generator


class Spread(NamedTuple):
    """Standard deviations on the probit scale: of clusters, of items, and of the methods' difference by its source."""

    cluster: float
    item: float
    own_cluster: float
    own_seed: float
    own_both: float


SPREADS = {
    "mixed": Spread(0.8, 0.3, 0.4, 0.2, 0.3),
    "seeds": Spread(0.8, 0.3, 0.1, 0.5, 0.2),
    "items": Spread(0.8, 0.3, 0.6, 0.05, 0.2),
    "none": Spread(0.8, 0.3, 0.0, 0.0, 0.0),
}


def two_methods(
    generator: Generator,
    seeds: int,
    clusters: int,
    items: int,
    spread: Spread,
    levels: tuple[float, float] = (0.3, 0.6),
) -> tuple[Estimate, Estimate, float]:
    """Return two methods' scores on the same items, and the true difference for all seeds and items of the kind."""
    (base, other), (low, high) = several_methods(generator, seeds, clusters, items, spread, levels)
    return base, other, high - low


class Collapse(NamedTuple):
    """Each seed of a method collapses with a probability, and then its level is lower by `depth` on the probit scale.

    It happens to the methods from `first` on.
    """

    probability: float = 0.3
    depth: float = 1.5
    first: int = 0


NEVER = Collapse(0.0, 0.0)


def several_methods(
    generator: Generator,
    seeds: int,
    clusters: int,
    items: int,
    spread: Spread,
    levels: Sequence[float],
    *,
    answers: int = 1,
    collapse: Collapse = NEVER,
) -> tuple[list[Estimate], list[float]]:
    """Return several methods' scores on the same items, and each one's true mean for all seeds and items of the kind.

    `levels` are the methods' means on the probit scale. An item's score is the mean over its `answers`. With fewer clusters
    than items, cluster sizes are multinomial.
    """
    names = _clusters(generator, clusters, items)
    shared = generator.normal(0, spread.cluster, clusters)[names] + generator.normal(0, spread.item, items)
    found: list[Estimate] = []
    for place, level in enumerate(levels):
        own = generator.normal(0, spread.own_cluster, clusters)[names][:, None]
        own = own + generator.normal(0, spread.own_seed, seeds)
        own = own + generator.normal(0, spread.own_both, (clusters, seeds))[names]
        if collapse.probability and place >= collapse.first:
            own = own - collapse.depth * (generator.random(seeds) < collapse.probability)
        right = level + shared[:, None] + own + generator.normal(size=(answers, items, seeds)) > 0
        found.append(_estimate(right.mean(axis=0), names))
    scale = math.sqrt(1 + sum(each**2 for each in spread))
    shares = [collapse.probability * (place >= collapse.first) for place in range(len(levels))]
    ends = [(ndtr(level / scale), ndtr((level - collapse.depth) / scale)) for level in levels]
    return found, [float((1 - p) * high + p * low) for p, (high, low) in zip(shares, ends, strict=True)]


def _clusters(generator: Generator, clusters: int, items: int) -> NDArray[np.int64]:
    """Return the cluster of each item; with as many clusters as items, each item is its own cluster."""
    return np.arange(items) if clusters >= items else generator.integers(0, clusters, items)


def _estimate(values: Vector, names: NDArray[np.int64]) -> Estimate:
    table = ItemTable(values, tuple(map(str, range(len(values)))), tuple(map(str, names)))
    return Estimate(dict(enumerate(values.mean(axis=0).tolist())), {"task": table})


# The retention lost so far, a share: as a function of learning reached (0..1) and of speed times the steps taken (0..1).
PATHS: dict[str, Callable[[Vector, Vector], Vector]] = {
    "lost late": lambda share, _: 0.25 * share**1.5,
    "lost early": lambda share, _: 0.25 * share**0.6,
    "lost with every step": lambda _, way: 0.06 * way,
}


class CurveStudy(NamedTuple):
    """A study with learning curves of two methods.

    `speeds` are the methods' speeds: learning after a share t of the stage is 0.25 + 0.6 (1 - exp(-speed t)). `effect` is the
    second method's true difference in retention, `spread` its standard deviation between seeds, both shares; the difference
    arises in the first third of learning. `points` is the number of points of a curve, `items` that of a task's items.
    """

    speeds: tuple[float, float] = (1.5, 3.0)
    path: str = "lost late"
    effect: float = 0.0
    spread: float = 0.03
    points: int = 9
    items: int = 100
    clusters: int = 100


Curves = tuple[dict[int, Curve], dict[int, Curve]]


def two_curves(generator: Generator, seeds: int, study: CurveStudy) -> Curves:
    """Return the learning curves of two methods from the same start, by seed."""
    return curves_of_stages(generator, seeds, study, 1)[0]


def curves_of_stages(generator: Generator, seeds: int, study: CurveStudy, stages: int) -> list[Curves]:
    """Return two methods' learning curves in several stages, which evaluate the same items."""
    names = (
        generator.integers(0, study.clusters, study.items) if study.clusters < study.items else np.arange(study.items)
    )
    hard = [generator.normal(0, 0.7, study.clusters)[names] for _ in range(2)]  # learned items, retained items
    return [_curves(generator, seeds, study, names, hard) for _ in range(stages)]


def _curves(
    generator: Generator, seeds: int, study: CurveStudy, names: NDArray[np.int64], hard: Sequence[Vector]
) -> Curves:
    sides: Curves = ({}, {})
    for seed in range(seeds):
        begin = [generator.normal(size=study.items) for _ in range(2)]  # greedy answers of one start are the same
        full = 0.6 + generator.normal(0, 0.03)
        for side, speed, effect in zip(sides, study.speeds, (0.0, study.effect), strict=True):
            way = speed * math.exp(generator.normal(0, 0.2)) * np.linspace(0, 1, study.points)
            share = 1 - np.exp(-way)
            own = (effect + generator.normal(0, study.spread / math.sqrt(2))) * np.minimum(1, 3 * share)
            kept = 0.6 - PATHS[study.path](share, way) + own
            learned = _answers(generator, 0.25 + full * share, hard[0], begin[0])
            table = ItemTable(
                _answers(generator, kept, hard[1], begin[1]),
                tuple(map(str, range(study.items))),
                tuple(map(str, names)),
            )
            side[seed] = Curve(learned.mean(axis=0), {"earlier": table})
    return sides


def _answers(generator: Generator, shares: Vector, hard: Vector, begin: Vector) -> Vector:
    """Return right (1) or wrong (0) by item and point, right with the given shares; neighbouring points agree on most items.

    On the latent scale an item has its difficulty, and noise that is correlated between neighbouring points.
    """
    noise = np.empty((len(hard), len(shares)))
    noise[:, 0] = begin
    for point in range(1, len(shares)):
        noise[:, point] = 0.7 * noise[:, point - 1] + math.sqrt(1 - 0.7**2) * generator.normal(size=len(hard))
    scale = math.sqrt(1 + 0.7**2)
    limits = ndtri(np.clip(shares, 0.005, 0.995)) * scale
    return (noise + hard[:, None] < limits).astype(np.float64)
