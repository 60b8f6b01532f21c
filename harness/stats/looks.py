"""The levels of tests at several planned numbers of seeds, with which all of them together err in at most 5 % of studies.

A test after every added seed finds an effect sooner or later, whether there is one or not. So an error-spending function
divides the 5 % over the looks (Lan and DeMets 1983, Biometrika 70): little for the first ones, most for the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import optimize, special

from harness.stats.intervals import Vector

NODES = 100  # of the numerical integration; twice as many change no level by more than 1e-13
ALPHA = 0.05  # the error that a claim spends over all its looks
FEWEST_SEEDS = 3  # that get a verdict


def level_at(seeds: int, looks: Sequence[int]) -> float:
    """Return the two-sided level of a test after `seeds` seeds where `looks` are planned; nan where no look is.

    Without a plan it is ALPHA. A look at fewer than FEWEST_SEEDS seeds tests nothing and spends nothing.
    """
    able = tuple(look for look in looks if look >= FEWEST_SEEDS)
    if not looks:
        return ALPHA
    return look_levels(able)[able.index(seeds)] if seeds in able else math.nan


def error_spent(share: float) -> float:
    """Return the two-sided error spent when `share` of the seeds is done, `4 - 4 Φ(z_{1-ALPHA/4} / sqrt(share))`.

    This is the spending function of Lan and DeMets (1983, Biometrika 70) that approximates O'Brien and Fleming's boundary.
    """
    return float(4 * special.ndtr(-special.ndtri(1 - ALPHA / 4) / math.sqrt(share)))


@lru_cache
def look_levels(looks: tuple[int, ...]) -> tuple[float, ...]:
    """Return the two-sided level of the test at each look, a group-sequential design; `looks` are increasing seed counts.

    Under the null hypothesis the probability of crossing any boundary is ALPHA: each look spends the increase of
    `error_spent` since the one before. The probability is integrated look by look over the sum of the seeds' effects
    (Armitage, McPherson and Rowe 1969, J. R. Stat. Soc. A 132). A t test uses the same level (Pocock 1977, Biometrika 64).
    Raises `ValueError` for looks that do not increase or begin below 2.
    """
    if not looks or any(later <= earlier for earlier, later in pairwise(looks)) or looks[0] < 2:
        raise ValueError(f"looks at {list(looks)} seeds: expected increasing numbers from 2 on")
    if len(looks) == 1:
        return (ALPHA,)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    sums, mass = np.zeros(1), np.ones(1)  # the sum of effects where no look crossed a boundary, and its probability
    levels: list[float] = []
    for before, seeds in pairwise((0, *looks)):
        spread = math.sqrt(seeds - before)
        spent = error_spent(seeds / looks[-1]) - (error_spent(before / looks[-1]) if before else 0.0)

        def excess(
            bound: float, sums: Vector = sums, mass: Vector = mass, spread: float = spread, spent: float = spent
        ) -> float:
            beyond = special.ndtr((sums - bound) / spread) + special.ndtr((-sums - bound) / spread)
            return float(beyond @ mass) - spent

        bound = float(optimize.brentq(excess, 0.0, 40 * math.sqrt(seeds), xtol=1e-10))  # pyright: ignore[reportArgumentType]
        levels.append(float(2 * special.ndtr(-bound / math.sqrt(seeds))))
        steps = (bound * nodes[:, None] - sums) / spread
        density = np.exp(-(steps**2) / 2) @ mass / (spread * math.sqrt(2 * math.pi))
        sums, mass = bound * nodes, bound * weights * density
    return tuple(levels)
