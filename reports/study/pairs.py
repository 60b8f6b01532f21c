"""AOPD and OPD compared where they learned equally: settings paired at matched learning, and what each kept.

Retention of the first stage's task is compared where that task itself was learned equally, forgetting where all tasks
were. Equally means that the whole 95 % t interval of the paired difference lies within the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from harness.stats.intervals import Interval, t_interval
from reports.compare.paired import NOTHING
from reports.compare.rows import MATCHED, ON_AVERAGE, how_matched
from reports.document.sentences import format_count, format_interval, format_points
from reports.study.data import AOPD, OPD, Config, Results


@dataclass(frozen=True)
class Matching:
    """What must be learned equally, and what is compared where it was: names of figures, and what readers call them."""

    learned: str
    outcome: str
    learned_as: str
    outcome_as: str


RETENTION = Matching("first_learned", "first_retained", "R[1][1]", "retention of the first task (R[T][1] − R[1][1])")
FORGETTING = Matching("learning_accuracy", "forgetting_chaudhry", "learning accuracy", "forgetting (Chaudhry)")


@dataclass(frozen=True)
class MatchedPair:
    """An AOPD setting beside the OPD setting of the same start and seeds that learned most nearly as much.

    Differences are AOPD minus OPD, paired over seeds.
    """

    start: str
    rates: tuple[float, float]
    configs: tuple[Config, Config]
    learned: Interval
    outcome: Interval

    @property
    def status(self) -> str:
        """Whether learning is matched."""
        return how_matched(self.learned)


def pairs(results: Results, matching: Matching) -> list[MatchedPair]:
    """Return for each AOPD setting, by start and learning rate, the OPD setting closest in what is matched."""
    found: list[MatchedPair] = []
    for start in results.starts:
        for rate, config in results.rates(start, AOPD).items():
            others = results.rates(start, OPD).items()
            candidates = [_pair(results, matching, start, (rate, lr), (config, other)) for lr, other in others]
            known = [pair for pair in candidates if pair.learned.seeds]
            found += sorted(known, key=lambda pair: abs(pair.learned.mean))[:1]
    return found


def varies_rates(results: Results) -> bool:
    """Whether AOPD or OPD ran at several learning rates from a start, and both did: what there is to match."""
    rates = [[len(results.rates(start, adapter)) for adapter in (AOPD, OPD)] for start in results.starts]
    return any(min(counts) and max(counts) > 1 for counts in rates)


def at_matched_learning(results: Results, matched: Sequence[MatchedPair], matching: Matching) -> Interval:
    """Return AOPD minus OPD of the outcome: the matched pairs' mean of each seed, then the interval over seeds."""
    each = [
        results.series(one, matching.outcome) - results.series(other, matching.outcome) for one, other in _both(matched)
    ]
    return t_interval(pd.concat(each, axis=1).mean(axis=1, skipna=False)) if each else NOTHING


def matching_sentences(results: Results, matching: Matching) -> list[str]:
    """Return per start how many settings are matched and what was kept there."""
    found = pairs(results, matching)
    return [_sentence(results, matching, start, [p for p in found if p.start == start]) for start in results.starts]


def _pair(
    results: Results, matching: Matching, start: str, rates: tuple[float, float], configs: tuple[Config, Config]
) -> MatchedPair:
    seeds = [set(results.series(config, matching.learned).dropna().index) for config in configs]
    figures = (matching.learned, matching.outcome)
    learned, outcome = (results.paired(*configs, name) if seeds[0] == seeds[1] else NOTHING for name in figures)
    return MatchedPair(start, rates, configs, learned, outcome)


def _both(matched: Sequence[MatchedPair]) -> list[tuple[Config, Config]]:
    return [pair.configs for pair in matched]


def _sentence(results: Results, matching: Matching, start: str, here: Sequence[MatchedPair]) -> str:
    where = f"From the {start} start" if start else "From the only start"
    if not here:
        return f"{where} no AOPD setting has an OPD setting with the same seeds."
    matched = [pair for pair in here if pair.status == MATCHED]
    average = sum(pair.status == ON_AVERAGE for pair in here)
    counted = (
        f"{where} {len(matched)} of {format_count(len(here), 'AOPD setting')} matched in {matching.learned_as}, "
        f"{average} on average only"
    )
    if not matched:
        closest = min((pair.learned.mean for pair in here), key=abs)
        return f"{counted} (closest: {format_points(closest)} points), so {matching.outcome_as} is not compared."
    kept = at_matched_learning(results, matched, matching)
    change = f"{matching.outcome_as}: {format_interval(kept, format_points)} points"
    return f"{counted}. Over the matched ones, AOPD minus OPD, {change}."
