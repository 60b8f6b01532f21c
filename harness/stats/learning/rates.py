"""The learning rate at which a method does best, chosen for each seed from the other seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class ChosenRate(NamedTuple):
    """The learning rate chosen for a seed, and the figure of that seed at that rate."""

    rate: float
    value: float


def choose_rates(by_rate: Mapping[float, Mapping[int, float]]) -> dict[int, ChosenRate]:
    """Return for each seed the rate with the highest mean over the other seeds, and the seed's own figure there.

    `by_rate` is the figure by learning rate and seed. A rate without any value and a seed that lacks a rate are left out;
    the result is empty if fewer than two seeds remain. Choosing on other seeds avoids the bias of taking a maximum.
    """
    known = {rate: _known(values) for rate, values in by_rate.items() if _known(values)}
    every = list(known.values())
    seeds = [seed for seed in every[0] if all(seed in values for values in every)] if every else []
    if len(seeds) < 2:
        return {}
    totals = {rate: sum(values[seed] for seed in seeds) for rate, values in known.items()}
    best = {seed: max(known, key=lambda rate, seed=seed: totals[rate] - known[rate][seed]) for seed in seeds}
    return {seed: ChosenRate(rate, known[rate][seed]) for seed, rate in best.items()}


def widening(sides: Iterable[Mapping[int, ChosenRate]]) -> float:
    """Return the factor by which an interval of figures at chosen rates has to be wider than one at fixed rates.

    Where the seeds of a method chose different rates, their figures depend on each other through the choice: the variance of
    the mean of n of them is `s^2 (1/n + 1/(n - 1))` (Nadeau and Bengio 2003, Machine Learning 52, with one seed tested and
    n - 1 to choose), not `s^2 / n`. Without the factor, equal methods differ in 10 to 16 % of studies in which two rates are
    equally good. The factor is 1 where all seeds of each method chose one rate.
    """
    factors = [
        math.sqrt(1 + len(chosen) / (len(chosen) - 1))
        for chosen in sides
        if len({each.rate for each in chosen.values()}) > 1
    ]
    return max(factors, default=1.0)


def _known(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if not math.isnan(value)}
