"""Plan a comparison before its runs: how many seeds, items and answers find an effect, or show its absence, and at what cost.

The mean paired difference of two methods over S seeds, C clusters of items and m answers of each item has the variance

    v = seeds / S + clusters / C + interaction / (S C) + answers / (S C m)

(a crossed random-effects model; Brennan 2001, Generalizability Theory, eq. 3.4). Seeds and clusters are both random, because a
result should hold for another seed and for other items. Scores are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from harness.stats.looks import ALPHA, FEWEST_SEEDS
from harness.stats.power import POWER, MeanSquares

MOST_SEEDS = 1000
LIMITS = 0.8  # the confidence level of the variance between seeds


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

    def mean_squares(self, design: Design) -> MeanSquares:
        """Return the expected mean squares of a study with a design."""
        S, C = design.seeds, design.clusters
        rest = self.interaction + self.answers / design.answers
        return MeanSquares(C * self.seeds + rest, S * self.clusters + rest, rest, S, C)


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
    """A design with its hours and its power for what was asked."""

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


def seed_variance_limits(components: Components, pilot: Design) -> tuple[Components, Components]:
    """Return the components with the variance between seeds at the two limits of its confidence interval at LIMITS.

    The mean square of a pilot's S seeds, divided by its expectation, is chi-squared on S - 1 degrees of freedom divided by
    S - 1. The other components keep their estimates: a pilot knows them from hundreds of items.
    """
    squares, df = components.mean_squares(pilot), pilot.seeds - 1
    tails = (1 - (1 - LIMITS) / 2, (1 - LIMITS) / 2)
    limits = [squares.of_seeds * df / (2 * float(special.gammaincinv(df / 2, tail))) for tail in tails]
    low, high = (max(0.0, (limit - squares.of_rest) / pilot.clusters) for limit in limits)
    return replace(components, seeds=low), replace(components, seeds=high)


def power_of(effect: float, components: Components, design: Design, alpha: float = ALPHA) -> float:
    """Return the probability that a study finds a true mean difference of `effect`, by its two-sided test at `alpha`.

    It is 0 below FEWEST_SEEDS seeds, which get no verdict, and where a single cluster leaves nothing to estimate from.
    """
    if design.seeds < FEWEST_SEEDS or design.clusters < 2:
        return 0.0
    if components.of_mean(design) == 0:
        return 1.0 if effect else alpha
    return components.mean_squares(design).finds(abs(effect), alpha)


def equivalence_power(
    margin: float, components: Components, design: Design, effect: float = 0.0, alpha: float = ALPHA
) -> float:
    """Return the probability that a study shows a true mean difference of `effect` to be within ±`margin`.

    That is the verdict `equivalent`: two one-sided tests at `alpha` pass, and the two-sided test finds no difference. A study
    of methods without a difference finds one with probability `alpha`, so no design has a power above 1 - `alpha`.
    """
    if design.seeds < FEWEST_SEEDS or design.clusters < 2:
        return 0.0
    if components.of_mean(design) == 0:
        return float(abs(effect) < margin)
    return components.mean_squares(design).shows_equivalence(margin, effect, alpha)


def detectable_difference(components: Components, design: Design, power: float = POWER, alpha: float = ALPHA) -> float:
    """Return the smallest true difference that the design finds with the given power; nan where it can find none."""
    return _reached(lambda effect: power_of(effect, components, design, alpha), components.of_mean(design), power)


def smallest_margin(components: Components, design: Design, power: float = POWER, alpha: float = ALPHA) -> float:
    """Return the smallest margin within which the design shows equal methods to be, with the given power; nan if none."""
    return _reached(
        lambda size: equivalence_power(size, components, design, 0.0, alpha), components.of_mean(design), power
    )


def _reached(power_at: Callable[[float], float], variance: float, power: float) -> float:
    """Return the smallest size with the given power, starting from one standard error; nan where none has it."""
    high = math.sqrt(variance) or 1e-9
    while power_at(high) < power:
        high *= 1.5
        if high > 1e6:
            return math.nan
    return float(optimize.brentq(lambda size: power_at(size) - power, 0.0, high, xtol=1e-4 * high))  # pyright: ignore[reportArgumentType]


def fewest_seeds(power_with: Callable[[int], float], power: float = POWER) -> int | None:
    """Return the fewest seeds with at least the given power; None if even MOST_SEEDS do not have it.

    `power_with` is the power by the number of seeds, for example of `power_of` or of `equivalence_power`.
    """
    if power_with(MOST_SEEDS) < power:
        return None
    low, high = FEWEST_SEEDS - 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_with(middle) >= power else (middle, high)
    return high


def cheapest_designs(
    power_with: Callable[[Design], float],
    costs: Costs,
    clusters: Iterable[int],
    answers: Iterable[int],
) -> list[PlannedDesign]:
    """Return designs with at least POWER, cheapest first: the fewest seeds by numbers of clusters and of answers."""
    designs: list[PlannedDesign] = []
    for size in product(clusters, answers):
        seeds = fewest_seeds(lambda number, size=size: power_with(Design(number, *size)))
        if seeds is not None:
            design = Design(seeds, *size)
            designs.append(PlannedDesign(design, costs.hours(design), power_with(design)))
    return sorted(designs, key=lambda planned: (planned.hours, planned.design.seeds))
