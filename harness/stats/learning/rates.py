"""The learning rate at which a method does best, chosen for each half of the seeds by the other half."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class ChosenRate(NamedTuple):
    """The learning rate chosen for a seed, and the figure of that seed at that rate."""

    rate: float
    value: float


def choose_rates(by_rate: Mapping[float, Mapping[int, float]]) -> dict[int, ChosenRate]:
    """Return for each seed the rate with the highest mean over the other half of the seeds, and the seed's own figure there.

    Every second seed is in one half. `by_rate` is the figure by learning rate and seed. A rate without any value and a seed
    that lacks a rate are left out; the result is empty if fewer than two seeds remain. Choosing on other seeds avoids the bias
    of taking a maximum. All other seeds would choose more surely, but then the figures depend on each other the more, the
    more seeds there are (decision 19).
    """
    known = {rate: _known(values) for rate, values in by_rate.items() if _known(values)}
    every = list(known.values())
    seeds = sorted(seed for seed in every[0] if all(seed in values for values in every)) if every else []
    if len(seeds) < 2:
        return {}
    best = dict[int, float]()
    for own, others in ((seeds[::2], seeds[1::2]), (seeds[1::2], seeds[::2])):
        totals = {rate: sum(values[seed] for seed in others) for rate, values in known.items()}
        best |= dict.fromkeys(own, max(totals, key=totals.__getitem__))
    return {seed: ChosenRate(best[seed], known[best[seed]][seed]) for seed in seeds}


def widening(sides: Iterable[Mapping[int, ChosenRate]]) -> float:
    """Return the factor by which an interval of figures at chosen rates has to be wider than one at fixed rates.

    Where the halves of a method chose different rates, their figures depend on each other through the choice. Let s and t be
    the halves' sums of the difference between two equally good rates. The sign of each chooses the rate of the other half, so
    the sum of all chosen figures has the term `±(|s| + |t|) / 2`, whose variance for normal s and t is `v = 1 + 4/pi sqrt(a b)
    / n` times that of independent halves of a and b of the n seeds. By the same dependence the sample variance is too small,
    on average by the factor `1 - (v - 1) / (n - 1)`. The square root of the quotient is exact for two rates that share
    nothing, and too large for others (decision 19). It is 1 where all seeds of each method chose one rate.
    """
    differing = [len(chosen) for chosen in sides if len({each.rate for each in chosen.values()}) > 1]
    return max(map(largest_widening, differing), default=1.0)


def largest_widening(seeds: int) -> float:
    """Return the factor of `widening` where the halves of so many seeds, two or more, chose different rates."""
    variance = 1 + 4 / math.pi * math.sqrt((seeds // 2) * (seeds - seeds // 2)) / seeds
    return math.sqrt(variance / (1 - (variance - 1) / (seeds - 1)))


def _known(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if not math.isnan(value)}
