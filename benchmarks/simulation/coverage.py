"""Measure how often intervals and verdicts are right, on simulated studies whose truth is known.

`make coverage` writes docs/results/coverage.md. `python -m benchmarks.simulation.coverage --only TABLE` measures one table and
keeps the others of the page. A share of n studies has a standard error of sqrt(0.05 * 0.95 / n).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.simulation.coverage_page import SEEDS, TITLES, Row, render_table, replace_section, rows_of, section_of
from benchmarks.simulation.reported_studies import CASES, Shape, mean_over_stages
from benchmarks.simulation.simulated_studies import PATHS, SPREADS, CurveStudy, Generator, two_curves, two_methods
from harness.stats.estimates import Estimate
from harness.stats.intervals import Interval, resolved, t_interval
from harness.stats.learning.equal_learning import at_equal_learning
from harness.stats.learning.matching import FEWEST_SEEDS, MARGIN, MATCHED, how_matched
from harness.stats.paired import compare_estimates, over_items
from harness.stats.significance import holm
from harness.stats.two_way import two_way_interval

OUT = Path("docs/results/coverage.md")
SHAPES = ((20, 200), (60, 200), (200, 200))  # clusters, items; the tiny suite's tool tasks have 200 calls in 200 items
SAME = (0.45, 0.45)
AGAIN = (4000, 1000)  # new studies of a row with many false alarms, and of one of learning curves
DOUBTFUL = 0.055  # a share of false alarms above this is measured again, with more studies
INTERVALS: dict[str, Callable[[Estimate], Interval]] = {
    "over seeds": lambda found: t_interval(found.values),
    "over items": over_items,
    "two-way": two_way_interval,
}


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


def reported_row(name: str, kind: str, shape: Shape, studies: int, generator: Generator) -> Row:
    """Return how often the interval of one of CASES covers, by seeds, and then how often the report is wrong, by seeds."""
    case, found = CASES[name], list[tuple[float, float]]()
    for seeds in SEEDS:
        outcomes = [case(generator, seeds, shape, SPREADS[kind]) for _ in range(studies)]
        covered, wrong = np.array(outcomes, dtype=np.float64).mean(axis=0).tolist()
        found.append((covered, wrong))
    covers, errors = zip(*found, strict=True)
    return Row((name, kind, f"{shape[0]} × {shape[1] // shape[0]}"), (*covers, *errors))


def stages_row(study: CurveStudy, seeds: int, studies: int, generator: Generator) -> Row:
    """Return how often two methods differ at equal learning, mean over four stages; of all studies and of those compared."""
    outcomes = [mean_over_stages(generator, seeds, study, 4) for _ in range(studies)]
    differ, none = np.array(outcomes, dtype=np.float64).mean(axis=0).tolist()
    return Row(_curve_setting(study, seeds), (differ, differ / (1 - none) if none < 1 else math.nan, none))


def again_rows(page: str, generator: Generator) -> Iterator[Row]:
    """Yield the share of false alarms, with more and new studies, of a page's rows that show more than 5.5 %."""
    kinds = {" and ".join(f"{speed:g}" for speed in study.speeds) + study.path: study for study in CURVES[:6]}
    for cells in rows_of(page, "intervals"):
        if float(cells[6]) > DOUBTFUL:
            clusters, size = map(int, cells[2].split(" × "))
            items = 200 if clusters * size > 180 else clusters * size
            shape, seeds = (clusters, items), int(cells[1])
            wrong = _false_alarms(cells[0], shape, seeds, AGAIN[0], generator)
            yield Row(("interval", cells[0], cells[1], cells[2], cells[6]), (wrong,))
    for cells in rows_of(page, "verdicts"):
        if float(cells[2]) > DOUBTFUL:
            wrong = _false_alarms(cells[0], (60, 200), int(cells[1]), AGAIN[0], generator)
            yield Row(("judged, one claim", cells[0], cells[1], "60 × 3", cells[2]), (wrong,))
    for cells in rows_of(page, "curves"):
        study = kinds.get(cells[1] + cells[0])
        if study and cells[2] == "0" and cells[3] != "0" and float(cells[5]) >= DOUBTFUL:
            row = curve_row(study, int(cells[4]), AGAIN[1], generator)
            yield Row(("equal learning", f"{cells[0]}, {cells[1]}", cells[4], "100 × 1", cells[5]), row.shares[:1])


def _false_alarms(kind: str, shape: Shape, seeds: int, studies: int, generator: Generator) -> float:
    found = 0
    for _ in range(studies):
        same, alike, _ = two_methods(generator, seeds, *shape, SPREADS[kind], SAME)
        found += _excludes_zero(two_way_interval(alike - same))
    return found / studies


def curve_row(study: CurveStudy, seeds: int, studies: int, generator: Generator) -> Row:
    """Return how often two methods differ at equal learning, how often at their end points, and how often none is compared.

    The first share is of all studies, the second of those that can be compared. End points are the scores of the retained
    task after the stage, whatever was learned.
    """
    found = np.zeros(3)
    for _ in range(studies):
        base, other = two_curves(generator, seeds, study)
        equal = at_equal_learning(base, other)
        ends = t_interval([other[seed].change[-1] - base[seed].change[-1] for seed in base])
        differ = not equal.obstacle and _excludes_zero(two_way_interval(equal.difference))
        found += [differ, _excludes_zero(ends), bool(equal.obstacle)]
    differ, ends, none = (found / studies).tolist()
    return Row(_curve_setting(study, seeds), (differ, differ / (1 - none) if none < 1 else math.nan, ends, none))


def _curve_setting(study: CurveStudy, seeds: int) -> tuple[str, ...]:
    speeds = " and ".join(f"{speed:g}" for speed in study.speeds)
    return study.path, speeds, f"{100 * study.effect:g}", f"{100 * study.spread:g}", str(seeds)


CURVES = (
    *(CurveStudy(speeds=(1.5, speed), path=path) for path in PATHS for speed in (1.5, 6.0)),
    CurveStudy(speeds=(1.5, 3.0), spread=0.0),
    *(CurveStudy(speeds=(1.5, 3.0), effect=effect) for effect in (0.05, -0.05)),
)


STAGES = (
    *(
        CurveStudy(speeds=(1.5, speed), path=path)
        for path in ("lost late", "lost with every step")
        for speed in (1.5, 6)
    ),
    CurveStudy(speeds=(1.5, 3.0), effect=0.05),
)
REPORTED = (("mixed", (200, 200)), ("seeds", (200, 200)), ("mixed", (20, 200)))


def measure(name: str, studies: int, curve_studies: int, page: str) -> list[Row]:
    """Return the rows of one of the page's tables; `page` is the present one, for the table that looks at others again."""
    generator = np.random.default_rng([0, *name.encode()])
    if name == "intervals":
        rows = ((kind, shape, n) for kind in SPREADS for n in SEEDS for shape in SHAPES)
        return [coverage_row(*row, studies, generator) for row in rows]
    if name == "verdicts":
        return [verdict_row(kind, n, studies, generator) for kind in SPREADS for n in SEEDS]
    if name == "reported":
        return [reported_row(case, *setting, curve_studies, generator) for case in CASES for setting in REPORTED]
    if name == "curves":
        return [curve_row(study, n, curve_studies, generator) for study in CURVES for n in (*SEEDS, 20)]
    if name == "stages":
        return [stages_row(study, n, curve_studies, generator) for study in STAGES for n in SEEDS]
    return list(again_rows(page, generator))


def _excludes_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def main() -> None:
    """Measure and write the page, or one table of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies for each row")
    parser.add_argument("--curve-studies", type=int, default=400, help="the same for learning curves")
    parser.add_argument(
        "--only", choices=list(TITLES), action="append", help="measure these tables and keep the others"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    begin = time.process_time()
    page = asked.out.read_text(encoding="utf-8") if asked.out.is_file() else ""
    errors = [math.sqrt(0.05 * 0.95 / n) for n in (asked.studies, asked.curve_studies)]
    heading = (
        "# How often intervals and verdicts are right\n\n"
        f"Written by `make coverage`: {asked.studies} simulated studies a row (standard error {errors[0]:.3f}), "
        f"{asked.curve_studies} for learning curves ({errors[1]:.3f}), where a table does not say more. "
        "`tests/stats/test_coverage.py` repeats a small part."
    )
    for name in TITLES:
        if asked.only is None or name in asked.only:
            text = render_table(name, measure(name, asked.studies, asked.curve_studies, page))
            print(f"{name}: {time.process_time() - begin:.0f} s of CPU time", flush=True)
        else:
            text = section_of(page, name)
        page = replace_section(page, name, text)
    asked.out.write_text(f"{heading}\n\n" + "\n\n".join(section_of(page, name) for name in TITLES) + "\n", "utf-8")


if __name__ == "__main__":
    main()
