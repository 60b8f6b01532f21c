"""Measure how often intervals and verdicts are right, on simulated studies whose truth is known.

`make coverage` writes docs/results/coverage.md. `python -m benchmarks.simulation.coverage --only TABLE` measures one table and
keeps the others of the page. A share of n studies has a standard error of sqrt(0.05 * 0.95 / n).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.simulation.coverage_page import SEEDS, TITLES, Row, render_table, replace_section, rows_of, section_of
from benchmarks.simulation.reported_studies import CASES, Shape, mean_over_stages
from benchmarks.simulation.simulated_studies import PATHS, SPREADS, CurveStudy, Generator, two_curves, two_methods
from harness.stats.estimates import Estimate
from harness.stats.intervals import Interval, resolved, t_interval
from harness.stats.learning.equal_learning import at_equal_learning
from harness.stats.learning.matching import MARGIN, MATCHED, how_matched
from harness.stats.looks import FEWEST_SEEDS
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


def _doubtful(page: str) -> Iterator[partial[Row]]:
    """Yield what measures again, with more and new studies, the rows of a page that show more than 5.5 % of false alarms."""
    studies = {(" and ".join(f"{speed:g}" for speed in study.speeds), study.path): study for study in CURVES[:6]}
    for kind, seeds, size, *_, share in rows_of(page, "intervals"):
        if float(share) > DOUBTFUL:
            yield partial(again_row, "interval", kind, int(seeds), int(size.split(" × ")[0]), size, share)
    for kind, seeds, share, *_ in rows_of(page, "verdicts"):
        if float(share) > DOUBTFUL:
            yield partial(again_row, "judged, one claim", kind, int(seeds), 60, "60 × 3", share)
    for path, speeds, effect, spread, seeds, share, *_ in rows_of(page, "curves"):
        if (speeds, path) in studies and effect == "0" and spread != "0" and float(share) > DOUBTFUL:
            yield partial(again_curves, studies[speeds, path], int(seeds), share)
    for case, kind, size, *shares in rows_of(page, "reported"):
        for seeds, share in zip(SEEDS, shares[len(SEEDS) :], strict=True):
            if share != "–" and float(share) > DOUBTFUL:
                yield partial(again_case, case, kind, seeds, int(size.split(" × ")[0]), size, share)


def again_row(what: str, kind: str, seeds: int, clusters: int, size: str, share: str, generator: Generator) -> Row:
    """Return the share of two-way intervals that exclude zero for two equal methods, next to the one on the page."""
    found = 0
    for _ in range(AGAIN[0]):
        same, alike, _ = two_methods(generator, seeds, clusters, 200, SPREADS[kind], SAME)
        found += _excludes_zero(two_way_interval(alike - same))
    return Row((what, kind, str(seeds), size, share), (found / AGAIN[0],))


def again_case(case: str, kind: str, seeds: int, clusters: int, size: str, share: str, generator: Generator) -> Row:
    """Return how often the report is wrong in one of CASES, next to the share on the page."""
    outcomes = [CASES[case](generator, seeds, (clusters, 200), SPREADS[kind]).wrong for _ in range(AGAIN[0])]
    return Row((case, kind, str(seeds), size, share), (float(np.mean(outcomes)),))


def again_curves(study: CurveStudy, seeds: int, share: str, generator: Generator) -> Row:
    """Return the share of studies in which two methods on one curve differ at equal learning, next to the one on the page."""
    path, speeds, *_ = _curve_setting(study, seeds)
    differ = curve_row(study, seeds, AGAIN[1], generator).shares[0]
    return Row(("equal learning", f"{path}, {speeds}", str(seeds), "100 × 1", share), (differ,))


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


def measure(name: str, studies: int, curve_studies: int, page: str, workers: int = 1) -> list[Row]:
    """Return the rows of one of the page's tables; `page` is the present one, for the table that looks at others again.

    Each row has its own random stream, so the rows do not depend on the number of processes.
    """
    jobs = list(_jobs(name, studies, curve_studies, page))
    streams = [np.random.default_rng([place, *name.encode()]) for place in range(len(jobs))]
    if workers == 1:
        return [job(generator=stream) for job, stream in zip(jobs, streams, strict=True)]
    with ProcessPoolExecutor(workers) as pool:
        return [each.result() for each in [pool.submit(job, generator=s) for job, s in zip(jobs, streams, strict=True)]]


def _jobs(name: str, studies: int, curve_studies: int, page: str) -> Iterator[partial[Row]]:
    if name == "intervals":
        for kind, seeds, shape in product(SPREADS, SEEDS, SHAPES):
            yield partial(coverage_row, kind, shape, seeds, studies)
    elif name == "verdicts":
        for kind, seeds in product(SPREADS, SEEDS):
            yield partial(verdict_row, kind, seeds, studies)
    elif name == "reported":
        for case, setting in product(CASES, REPORTED):
            yield partial(reported_row, case, *setting, curve_studies)
    elif name == "curves":
        for study, seeds in product(CURVES, (*SEEDS, 20)):
            yield partial(curve_row, study, seeds, curve_studies)
    elif name == "stages":
        for study, seeds in product(STAGES, SEEDS):
            yield partial(stages_row, study, seeds, curve_studies)
    else:
        yield from _doubtful(page)


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
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    begin = time.monotonic()
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
            text = render_table(name, measure(name, asked.studies, asked.curve_studies, page, asked.workers))
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        else:
            text = section_of(page, name)
        page = replace_section(page, name, text)
    asked.out.write_text(f"{heading}\n\n" + "\n\n".join(section_of(page, name) for name in TITLES) + "\n", "utf-8")


if __name__ == "__main__":
    main()
