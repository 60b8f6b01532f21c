"""Plan a comparison before its runs: how many seeds, items and answers find an effect, and at what cost.

The mean paired difference of two methods over S seeds, C clusters of items and m answers of each item has the variance

    v = seeds / S + clusters / C + interaction / (S C) + answers / (S C m)

(a crossed random-effects model; Brennan 2001, Generalizability Theory, eq. 3.4). Seeds and clusters are both random, because a
result should hold for another seed and for other items. Scores are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from harness.stats.power import POWER, rejects

ALPHA = 0.05
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Components:
    """The variance of one paired difference by its source.

    `seeds`: between training seeds; `clusters`: between clusters of items; `interaction`: of a cluster in one seed, beyond
    these two; `answers`: of one sampled answer, summed over both methods (0 for greedy decoding).
    """

    seeds: float
    clusters: float
    interaction: float
    answers: float = 0.0

    def of_mean(self, design: Design) -> float:
        """Return the variance of the mean difference under a design."""
        cells = design.seeds * design.clusters
        cell = (self.interaction + self.answers / design.answers) / cells
        return self.seeds / design.seeds + self.clusters / design.clusters + cell

    def degrees_of_freedom(self, design: Design) -> float:
        """Return Satterthwaite's degrees of freedom of the estimate of this variance from three mean squares.

        The estimate is (MS_seeds + MS_clusters - MS_rest) / (S C), each mean square with its own degrees of freedom
        (Satterthwaite 1946, Biometrics Bulletin 2, eq. 17). 0 where one seed or one cluster leaves nothing to estimate from.
        """
        S, C = design.seeds, design.clusters
        if S < 2 or C < 2:
            return 0.0
        rest = self.interaction + self.answers / design.answers
        seeds, clusters = C * self.seeds + rest, S * self.clusters + rest
        spread = seeds**2 / (S - 1) + clusters**2 / (C - 1) + rest**2 / ((S - 1) * (C - 1))
        total = seeds + clusters - rest
        return total**2 / spread if spread > 0 else math.inf


@dataclass(frozen=True)
class Design:
    """The size of a comparison: training seeds, independent clusters of items, and answers to each item."""

    seeds: int
    clusters: int
    answers: int = 1


@dataclass(frozen=True)
class Costs:
    """What a run costs in hours: `training` once, `answer` for each answer to each cluster; `methods` runs for each seed."""

    training: float
    answer: float = 0.0
    methods: int = 2

    def hours(self, design: Design) -> float:
        """Return the hours of all runs of a design."""
        return design.seeds * self.methods * (self.training + design.clusters * design.answers * self.answer)


@dataclass(frozen=True)
class PlannedDesign:
    """A design with its hours and its power for the effect that was asked for."""

    design: Design
    hours: float
    power: float


def estimate_components(differences: ArrayLike, answer_variance: ArrayLike = 0.0, answers: int = 1) -> Components:
    """Estimate the components from paired differences (S, C) of a pilot study, each the mean of a cluster in one seed.

    `answer_variance`, a number or (S, C), is the variance of one sampled answer, summed over both methods; each mean is over
    `answers` answers. The method is analysis of variance of the crossed design; negative estimates become 0.
    Raises `ValueError` for fewer than two seeds or clusters.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"a pilot of shape {table.shape}: expected at least 2 seeds and 2 clusters of items")
    S, C = table.shape
    rows, columns, mean = table.mean(axis=1), table.mean(axis=0), float(table.mean())
    rest = table - rows[:, None] - columns + mean
    of_rest = float((rest**2).sum() / ((S - 1) * (C - 1)))
    of_seeds, of_clusters = C * float(rows.var(ddof=1)), S * float(columns.var(ddof=1))
    answer = float(np.mean(np.asarray(answer_variance, dtype=np.float64)))
    return Components(
        seeds=max(0.0, (of_seeds - of_rest) / C),
        clusters=max(0.0, (of_clusters - of_rest) / S),
        interaction=max(0.0, of_rest - answer / answers),
        answers=answer,
    )


def power_of(effect: float, components: Components, design: Design, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided t test at `alpha` finds a true mean difference of `effect`."""
    variance, degrees = components.of_mean(design), components.degrees_of_freedom(design)
    if degrees <= 0:
        return 0.0
    if variance == 0:
        return 1.0 if effect else alpha
    shift = abs(effect) / math.sqrt(variance)
    if math.isinf(degrees):
        critical = float(special.ndtri(1 - alpha / 2))
        return float(special.ndtr(shift - critical) + special.ndtr(-critical - shift))
    return rejects(shift, degrees, float(special.stdtrit(degrees, 1 - alpha / 2)))


def detectable_difference(components: Components, design: Design, power: float = POWER, alpha: float = ALPHA) -> float:
    """Return the smallest true difference that the design finds with the given power; nan where it can find none."""
    if components.degrees_of_freedom(design) <= 0:
        return math.nan
    high = math.sqrt(components.of_mean(design)) or 1e-9
    while power_of(high, components, design, alpha) < power:
        high *= 1.5
        if high > 1e6:
            return math.nan
    return float(optimize.brentq(lambda effect: power_of(effect, components, design, alpha) - power, 0.0, high))  # pyright: ignore[reportArgumentType]


def seeds_for(
    effect: float, components: Components, clusters: int, answers: int, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Return the fewest seeds that find the effect with these items; None if even MOST_SEEDS do not."""

    def enough(seeds: int) -> bool:
        return power_of(effect, components, Design(seeds, clusters, answers), alpha) >= power

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def cheapest_designs(
    effect: float,
    components: Components,
    costs: Costs,
    clusters: Iterable[int],
    answers: Iterable[int],
    power: float = POWER,
    alpha: float = ALPHA,
) -> list[PlannedDesign]:
    """Return designs that find the effect, cheapest first: the fewest seeds for each number of clusters and of answers."""
    designs: list[PlannedDesign] = []
    for some_clusters, some_answers in product(clusters, answers):
        seeds = seeds_for(effect, components, some_clusters, some_answers, power, alpha)
        if seeds is not None:
            design = Design(seeds, some_clusters, some_answers)
            designs.append(PlannedDesign(design, costs.hours(design), power_of(effect, components, design, alpha)))
    return sorted(designs, key=lambda planned: (planned.hours, planned.design.seeds))
