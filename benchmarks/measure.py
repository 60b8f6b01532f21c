"""Repeat measures alternately, and summarise them: medians, ranges and the ratio inside each repetition.

Machines are shared and their speed drifts, so only measures that ran in the same repetition are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """One comparison: `ours` and `theirs` hold a value of each repetition, in the same unit."""

    what: str
    unit: str
    ours: list[float]
    baseline: str
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, repetition by repetition."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]


def in_turn(measures: Mapping[str, Callable[[int], T]], repetitions: int) -> dict[str, list[T]]:
    """Return each measure's results, run in the order A B C, A B C; each gets the repetition's seed.

    A first round, with seed 0, warms the caches and does not count.
    """
    rounds = [{name: measure(seed) for name, measure in measures.items()} for seed in range(repetitions + 1)]
    return {name: [results[name] for results in rounds[1:]] for name in measures}


def per_second(work: Callable[[int], float]) -> Callable[[int], float]:
    """Return a measure of work per second, where `work` returns the amount of work that it did."""

    def rate(seed: int) -> float:
        start = time.perf_counter()
        done = work(seed)
        return done / (time.perf_counter() - start)

    return rate


def median_of(values: Sequence[float], digits: int = 2) -> str:
    """Return a median as text."""
    return f"{statistics.median(values):,.{digits}f}"


def with_range(values: Sequence[float], digits: int = 2) -> str:
    """Return `median (smallest to largest)` as text."""
    return f"{median_of(values, digits)} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
