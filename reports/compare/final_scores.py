"""Compare where methods end with where they started: which end below their start, and which learned nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.stats.continual import ACCURACY, LEARNING, START
from harness.stats.figure_terms import after_own, at_start, minus
from harness.stats.intervals import Interval, has_width, resolved
from harness.stats.two_way import two_way_interval
from reports.data.methods import Method
from reports.formatting import format_percent

GAIN = replace(LEARNING, name="gain_over_start", cells=minus(after_own, at_start))
LEAST_LEARNED = 0.02  # a share: a gain whose interval ends at most here is called "learned nothing"


def describe_against_start(methods: Sequence[Method], stage: int | None = None) -> Iterator[str]:
    """Yield a sentence for each method whose mean ends below its start, or that learned next to nothing; no controls.

    Where the interval leaves more possible, the sentence says that it is not shown.
    """
    for method in methods:
        if not method.control:
            yield from _below_start(method, stage)
            yield from _nothing_learned(method, stage)


def format_bracket(interval: Interval, sign: int = 1) -> str:
    """Write an interval's bounds in points, with a leading space; both are negated for `sign` -1. Empty without bounds."""
    low, high = (interval.low, interval.high) if sign > 0 else (-interval.high, -interval.low)
    return "" if math.isnan(low) else f" [{format_percent(low)},\u00a0{format_percent(high)}]"


def _below_start(method: Method, stage: int | None) -> Iterator[str]:
    end, start = method.estimate(ACCURACY, stage=stage), method.estimate(START, stage=stage)
    change = two_way_interval(end - start).of_difference(ACCURACY.unit)
    if change.mean < 0:
        below = (
            "is not shown to end above its start"
            if has_width(change, 1) and not resolved(change, 1)
            else "ends below its start"
        )
        yield (
            f"{method.name} {below}: at {format_percent(end.of_seeds((end - start).seeds).mean)} %, "
            f"{format_percent(-change.mean)} points{format_bracket(change, -1)} less than before any stage."
        )


def _nothing_learned(method: Method, stage: int | None) -> Iterator[str]:
    gain = two_way_interval(method.estimate(GAIN, stage=stage)).of_difference(LEARNING.unit)
    if gain.mean <= LEAST_LEARNED:
        more = "more" if gain.mean >= 0 else "less"
        nothing = "learned nothing" if gain.high <= LEAST_LEARNED else "is not shown to have learned"
        yield (
            f"{method.name} {nothing}: right after its own stage a task scores {format_percent(abs(gain.mean))} points "
            f"{more} than at the start{format_bracket(gain, 1 if gain.mean >= 0 else -1)}, mean over tasks."
        )
