"""Compare a method with its reference where they learned equally: pairs of settings, and what each kept.

Retention of the first stage's task is compared where that task was learned equally, forgetting where all tasks were. Equally
means that the whole 95 % interval of the paired difference lies within the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from harness.stats.intervals import NOTHING, Interval
from harness.stats.learning.matching import MATCHED, ON_AVERAGE, how_matched
from harness.stats.two_way import two_way_interval
from reports.document.blocks import Grid
from reports.formatting import format_count, format_interval, format_points
from reports.study.study_plan import Config
from reports.study.study_results import Results, unit_of


@dataclass(frozen=True)
class Matching:
    """The figure that must match (`learned`), and the one to compare (`outcome`): registered names, and names for readers."""

    learned: str
    outcome: str
    learned_as: str
    outcome_as: str


RETENTION = Matching("first_learned", "first_retained", "R[1][1]", "retention of the first task (R[T][1] − R[1][1])")
FORGETTING = Matching("learning_accuracy", "forgetting_chaudhry", "learning accuracy", "forgetting (Chaudhry)")


@dataclass(frozen=True)
class MatchedPair:
    """A method's setting, and the reference's setting of the same start and seeds whose learning is closest.

    Differences are method minus reference, paired over seeds.
    """

    methods: tuple[str, str]
    start: str
    rates: tuple[float, float]
    configs: tuple[Config, Config]
    learned: Interval
    outcome: Interval

    @property
    def status(self) -> str:
        """Whether learning is matched."""
        return how_matched(self.learned)


def pair_settings(results: Results, matching: Matching, methods: tuple[str, str]) -> list[MatchedPair]:
    """Return for each setting (start and learning rate) of a method the reference's setting that is closest in learning."""
    found: list[MatchedPair] = []
    for start in results.layout.starts:
        for rate, config in results.layout.rates(start, methods[0]).items():
            others = results.layout.rates(start, methods[1]).items()
            candidates = [_pair(results, matching, methods, start, (rate, lr), (config, other)) for lr, other in others]
            known = [pair for pair in candidates if pair.learned.seeds]
            found += sorted(known, key=lambda pair: abs(pair.learned.mean))[:1]
    return found


def varies_rates(results: Results, methods: tuple[str, str]) -> bool:
    """Whether from some start both methods have runs, at least one of them at several learning rates."""
    rates = [[len(results.layout.rates(start, method)) for method in methods] for start in results.layout.starts]
    return any(min(counts) and max(counts) > 1 for counts in rates)


def difference_at_matched_learning(results: Results, matched: Sequence[MatchedPair], matching: Matching) -> Interval:
    """Return the difference of the outcome, mean over the matched pairs, over the seeds that all of them have."""
    changes = [
        results.estimate(pair.configs[0], matching.outcome) - results.estimate(pair.configs[1], matching.outcome)
        for pair in matched
    ]
    if not changes:
        return NOTHING
    return two_way_interval(reduce(add, changes) / len(changes)).of_difference(unit_of(matching.outcome))


def pairs_grid(results: Results, matching: Matching, methods: tuple[str, str]) -> Grid:
    """Return a row per setting of a method, with the reference's setting closest in learning and the paired differences."""
    rates = [f"{method} lr" for method in methods]
    header = ["start", *rates, "seeds", matching.learned_as, matching.outcome_as, "learning is"]
    rows = [
        [
            pair.start,
            *(f"{rate:g}" for rate in pair.rates),
            str(pair.learned.seeds),
            *(format_interval(each, format_points) for each in (pair.learned, pair.outcome)),
            pair.status,
        ]
        for pair in pair_settings(results, matching, methods)
    ]
    strong = frozenset((place, len(header) - 1) for place, row in enumerate(rows) if row[-1] == MATCHED)
    title = f"{matching.outcome_as[:1].upper()}{matching.outcome_as[1:]}, {methods[0]} minus {methods[1]}"
    return Grid(results.titled(title), header, rows, strong)


def describe_matching(results: Results, matching: Matching, methods: tuple[str, str]) -> list[str]:
    """Return a sentence per start: how many settings are matched, and the difference of the outcome there."""
    found = pair_settings(results, matching, methods)
    by_start = {start: [pair for pair in found if pair.start == start] for start in results.layout.starts}
    return [_describe(results, matching, methods, start, here) for start, here in by_start.items()]


def _pair(
    results: Results,
    matching: Matching,
    methods: tuple[str, str],
    start: str,
    rates: tuple[float, float],
    configs: tuple[Config, Config],
) -> MatchedPair:
    seeds = [set(results.series(config, matching.learned).dropna().index) for config in configs]
    figures = (matching.learned, matching.outcome)
    learned, outcome = (results.paired(*configs, name) if seeds[0] == seeds[1] else NOTHING for name in figures)
    return MatchedPair(methods, start, rates, configs, learned, outcome)


def _describe(
    results: Results, matching: Matching, methods: tuple[str, str], start: str, here: Sequence[MatchedPair]
) -> str:
    where, (method, reference) = f"From the {start} start" if start else "From the only start", methods
    if not here:
        return f"{where} no setting of {method} has a setting of {reference} with the same seeds."
    matched = [pair for pair in here if pair.status == MATCHED]
    average = sum(pair.status == ON_AVERAGE for pair in here)
    counted = (
        f"{where} {len(matched)} of {format_count(len(here), 'setting')} of {method} matched in {matching.learned_as}, "
        f"{average} on average only"
    )
    if not matched:
        closest = min((pair.learned.mean for pair in here), key=abs)
        return f"{counted} (closest: {format_points(closest)} points), so {matching.outcome_as} is not compared."
    kept = difference_at_matched_learning(results, matched, matching)
    change = f"{matching.outcome_as}: {format_interval(kept, format_points)} points"
    return f"{counted}. Over the matched ones, {method} minus {reference}, {change}."
