"""Measure how often intervals and verdicts are right, on simulated studies whose truth is known.

`python -m benchmarks.coverage` (`make coverage`) writes docs/results/coverage.md.
A share of n studies has a standard error of sqrt(0.05 * 0.95 / n).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.simulated_studies import PATHS, SPREADS, CurveStudy, Generator, two_curves, two_methods
from harness.stats.estimates import Estimate
from harness.stats.intervals import Interval, resolved, t_interval
from harness.stats.learning.equal_learning import at_equal_learning
from harness.stats.learning.matching import FEWEST_SEEDS, MARGIN, MATCHED, how_matched
from harness.stats.paired import compare_estimates, over_items
from harness.stats.significance import holm
from harness.stats.two_way import two_way_interval

OUT = Path("docs/results/coverage.md")
SEEDS = (3, 5, 10)
SHAPES = ((20, 200), (60, 200), (200, 200))  # clusters, items; the tiny suite's tool tasks have 200 calls in 200 items
SAME = (0.45, 0.45)
INTERVALS: dict[str, Callable[[Estimate], Interval]] = {
    "over seeds": lambda found: t_interval(found.values),
    "over items": over_items,
    "two-way": two_way_interval,
}


class Row(NamedTuple):
    """One setting with the share of studies in which something held, by column."""

    setting: tuple[str, ...]
    shares: tuple[float, ...]


def coverage_row(kind: str, shape: tuple[int, int], seeds: int, studies: int, generator: Generator) -> Row:
    """Return how often each interval covers the true difference of two methods, and the two-way one's false alarms."""
    held = np.zeros(len(INTERVALS) + 1)
    for _ in range(studies):
        base, other, truth = two_methods(generator, seeds, *shape, SPREADS[kind])
        found = [interval(other - base) for interval in INTERVALS.values()]
        same, alike, _ = two_methods(generator, seeds, *shape, SPREADS[kind], SAME)
        held += [*(each.low <= truth <= each.high for each in found), _excludes_zero(two_way_interval(alike - same))]
    return Row((kind, str(seeds), f"{shape[0]} × {shape[1] // shape[0]}"), tuple(held / studies))


def verdict_row(kind: str, seeds: int, studies: int, generator: Generator) -> Row:
    """Return how often three verdicts are wrong, each under the truth that makes it wrong most often.

    - supported or contradicted, for two equal methods;
    - any of four tests with Holm's correction, for two methods that are equal in all four tasks;
    - `matched` (by t over seeds), for two methods whose learning differs by the margin.
    """
    wrong = np.zeros(3)
    for _ in range(studies):
        pairs = [two_methods(generator, seeds, 60, 200, SPREADS[kind], SAME) for _ in range(4)]
        found = [compare_estimates(base, other) for base, other, _ in pairs]
        learned = t_interval(MARGIN + generator.normal(0, 0.02, seeds))
        wrong += [
            resolved(found[0].interval, FEWEST_SEEDS),
            min(holm([each.p_of_several for each in found])) <= 0.05,
            how_matched(learned) == MATCHED,
        ]
    return Row((kind, str(seeds)), tuple(wrong / studies))


def curve_row(study: CurveStudy, seeds: int, studies: int, generator: Generator) -> Row:
    """Return how often two methods differ at equal learning, how often at their end points, and how often none is compared.

    End points are the scores of the retained task after the stage, whatever was learned.
    """
    found = np.zeros(3)
    for _ in range(studies):
        base, other = two_curves(generator, seeds, study)
        equal = at_equal_learning(base, other)
        ends = t_interval([other[seed].change[-1] - base[seed].change[-1] for seed in base])
        differ = not equal.obstacle and _excludes_zero(two_way_interval(equal.difference))
        found += [differ, _excludes_zero(ends), bool(equal.obstacle)]
    speeds = " and ".join(f"{speed:g}" for speed in study.speeds)
    return Row(
        (study.path, speeds, f"{100 * study.effect:g}", f"{100 * study.spread:g}", str(seeds)), tuple(found / studies)
    )


CURVES = (
    *(CurveStudy(speeds=(1.5, speed), path=path) for path in PATHS for speed in (1.5, 6.0)),
    CurveStudy(speeds=(1.5, 3.0), spread=0.0),
    *(CurveStudy(speeds=(1.5, 3.0), effect=effect) for effect in (0.05, -0.05)),
)


def measure(studies: int, curve_studies: int, seed: int = 0) -> Iterator[tuple[str, list[Row]]]:
    """Yield the page's three tables by name."""
    generator = np.random.default_rng(seed)
    yield (
        "intervals",
        [coverage_row(kind, shape, n, studies, generator) for kind in SPREADS for n in SEEDS for shape in SHAPES],
    )
    yield "verdicts", [verdict_row(kind, n, studies, generator) for kind in SPREADS for n in SEEDS]
    yield "curves", [curve_row(study, n, curve_studies, generator) for study in CURVES for n in (*SEEDS, 20)]


HEADERS = {
    "intervals": [
        "variance",
        "seeds",
        "clusters × items",
        *(f"{name}: covers" for name in INTERVALS),
        "two-way: false alarm",
    ],
    "verdicts": ["variance", "seeds", "judged, one claim", "any of four, Holm", "matched, 5 points apart"],
    "curves": [
        "path",
        "speeds",
        "true difference",
        "sd of seeds",
        "seeds",
        "equal learning",
        "end points",
        "not comparable",
    ],
}
TITLES = {
    "intervals": "Intervals: another seed and other items",
    "verdicts": "Verdicts: how often they are wrong where nothing is to be found",
    "curves": "Equal learning: how often two methods are found to differ",
}


def render(tables: Sequence[tuple[str, list[Row]]], heading: str, texts: dict[str, str]) -> str:
    """Return the page: each table with its title and its explanation."""
    parts = [heading]
    for name, rows in tables:
        parts += [f"## {TITLES[name]}", texts[name], _table(HEADERS[name], rows)]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(
        [*lines, *("| " + " | ".join([*row.setting, *(f"{x:.3f}" for x in row.shares)]) + " |" for row in rows)]
    )


def _excludes_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


TEXTS = {
    "intervals": (
        "Share of 95 % intervals that cover the true difference of two methods, for another seed and other items; 0.95 is "
        "right. The last column is the share of two-way intervals that exclude zero for two equal methods. *Variance* "
        "says where the methods' difference varies: *none* has noise alone. Answers are right or wrong on a probit scale, "
        "200 items. With fewer clusters than items, their sizes are multinomial."
    ),
    "verdicts": (
        "*Judged*: supported or contradicted, for two equal methods. *Any of four*: at least one of four tasks at 5 % "
        "after Holm, for methods that are equal in all. *Matched*: called matched although learning differs by the margin "
        "of 5 points (seeds differ by 2 points). 60 clusters of items."
    ),
    "curves": (
        "Share of simulated studies in which the interval excludes zero: at equal learning "
        "(`harness/stats/learning/equal_learning.py`), and of end points compared as they are. With a true difference of 0 "
        "both methods move along one curve at different speeds, so 0.05 is right and more is a false alarm; with 5 points the "
        "share is the power. Curves have 9 points and 100 items. The methods' difference varies between seeds by the "
        "points given."
    ),
}


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies for each row")
    parser.add_argument("--curve-studies", type=int, default=400, help="the same for learning curves")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    begin = time.process_time()
    tables = list(measure(asked.studies, asked.curve_studies))
    errors = [math.sqrt(0.05 * 0.95 / n) for n in (asked.studies, asked.curve_studies)]
    heading = (
        "# How often intervals and verdicts are right\n\n"
        f"Written by `make coverage`: {asked.studies} simulated studies a row (standard error {errors[0]:.3f}), "
        f"{asked.curve_studies} for learning curves ({errors[1]:.3f}); {time.process_time() - begin:.0f} s of CPU time. "
        "`tests/stats/test_coverage.py` repeats a small part."
    )
    asked.out.write_text(render(tables, heading, TEXTS), encoding="utf-8")


if __name__ == "__main__":
    main()
