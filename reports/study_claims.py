"""The paper's claims about AOPD against OPD (arXiv 2605.06387), each judged from a study's runs alone.

A claim shows, or is contradicted, when the 95 % t interval of the paired difference over seeds leaves zero out.
Retention is judged only between settings that learned about as much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from reports.study_data import AOPD, OPD, Config, Results
from reports.tables import Interval, t_interval
from reports.words import plural, points, with_interval

SHOWS, CONTRADICTED, NOT_RESOLVED = "shows", "contradicted", "not resolved"
UNMATCHED, NO_RUNS = "not comparable: learning unmatched", "no runs"
MARGIN = 0.05  # of learning accuracy, a share


@dataclass(frozen=True)
class Claim:
    """A claim, what was compared for it, the paired difference AOPD minus OPD, and the verdict."""

    claim: str
    paper: str
    compared: str
    difference: Interval
    unit: str
    verdict: str


@dataclass(frozen=True)
class Pair:
    """An AOPD setting beside the OPD setting of the same start and seeds that learned most nearly as much.

    Differences are AOPD minus OPD, paired over seeds; `retained` is R[T][1] - R[1][1] of the first stage's task.
    """

    start: str
    rates: tuple[float, float]
    configs: tuple[Config, Config]
    learning: Interval
    first_learned: Interval
    forgetting: Interval
    retained: Interval

    @property
    def matched(self) -> bool:
        """Whether the mean learning accuracy differs by at most the margin."""
        return abs(self.learning.mean) <= MARGIN

    @property
    def equivalent(self) -> bool:
        """Whether the whole interval of the learning difference lies within the margin."""
        return self.learning.low >= -MARGIN and self.learning.high <= MARGIN


def judge(difference: Interval) -> str:
    """Return the verdict on a claim that a difference is positive."""
    if not difference.seeds:
        return NO_RUNS
    if difference.low > 0:
        return SHOWS
    return CONTRADICTED if difference.high < 0 else NOT_RESOLVED


def claims(results: Results) -> list[Claim]:
    """Return the paper's claims with their verdicts, in the order of METHOD.md."""
    return [*_learning(results), *_entropy(results), *_retention(results)]


def pairs(results: Results) -> list[Pair]:
    """Return for each AOPD setting, by start and learning rate, the OPD setting closest in learning."""
    found: list[Pair] = []
    for start in results.starts:
        rates = results.rates(start)
        for rate in sorted(rates):
            candidates = [
                pair for other in sorted(rates) if (pair := _pair(results, start, rate, other)).learning.seeds > 0
            ]
            found += sorted(candidates, key=lambda pair: abs(pair.learning.mean))[:1]
    return found


def at_matched_learning(results: Results, matched: Sequence[Pair], figure: str) -> Interval:
    """Return AOPD minus OPD of a figure: the matched pairs' mean of each seed, then the interval over seeds."""
    each = [results.series(pair.configs[0], figure) - results.series(pair.configs[1], figure) for pair in matched]
    return (
        t_interval(pd.concat(each, axis=1).mean(axis=1, skipna=False)) if each else t_interval(pd.Series(dtype=float))
    )


def best_rate(results: Results, start: str, adapter: str) -> tuple[float, Config] | None:
    """Return the learning rate at which an adapter learns most on average; None where it has no run."""
    found = [(rate, Config(suite, adapter)) for rate, suite in results.rates(start).items()]
    known = [(rate, config) for rate, config in found if results.mean(config, "learning_accuracy").seeds]
    return max(known, key=lambda item: results.mean(item[1], "learning_accuracy").mean, default=None)


def retention_sentences(results: Results) -> list[str]:
    """Return per start what can be said of retention: from matched pairs only."""
    found = pairs(results)
    return [_retention_sentence(results, start, [p for p in found if p.start == start]) for start in results.starts]


def _pair(results: Results, start: str, rate: float, other: float) -> Pair:
    suites = results.rates(start)
    configs = Config(suites[rate], AOPD), Config(suites[other], OPD)
    seeds = [set(results.series(config, "learning_accuracy").dropna().index) for config in configs]
    figures = ("learning_accuracy", "first_learned", "forgetting_chaudhry", "first_retained")
    nothing = t_interval(pd.Series(dtype=float))
    differences = [results.paired(*configs, figure) if seeds[0] == seeds[1] else nothing for figure in figures]
    return Pair(start, (rate, other), configs, *differences)


def _at(results: Results, start: str, adapter: str) -> Config:
    """The suite's own learning rate from a start; a name that no run has where the study leaves the start out."""
    return Config(results.rates(start).get(results.rate, ""), adapter)


def _learning(results: Results) -> Iterator[Claim]:
    claim = "AOPD learns more than OPD from a {} start"
    for start, paper in (("strong", "+4.09 points"), ("weak", "+8.34 points")):
        both = _at(results, start, AOPD), _at(results, start, OPD)
        yield _claim(results, claim.format(start), paper, f"learning accuracy at lr {results.rate:g}", both)
    best = [best_rate(results, "weak", adapter) for adapter in (AOPD, OPD)]
    if best[0] and best[1] and len(results.rates("weak")) > 1:
        compared = f"each at its best lr, chosen on the same seeds (AOPD {best[0][0]:g}, OPD {best[1][0]:g})"
        yield _claim(results, claim.format("weak"), "–", f"learning accuracy, {compared}", (best[0][1], best[1][1]))
    gains = [
        results.series(_at(results, start, AOPD), "learning_accuracy")
        - results.series(_at(results, start, OPD), "learning_accuracy")
        for start in ("weak", "strong")
    ]
    more = t_interval(gains[0] - gains[1])
    text = "AOPD's gain in learning is larger from the weak start than from the strong one"
    compared = f"difference of the two differences at lr {results.rate:g}"
    yield Claim(text, "+4.25 points", compared, more, "points", judge(more))


def _entropy(results: Results) -> Iterator[Claim]:
    for start in ("strong", "weak"):
        both = _at(results, start, AOPD), _at(results, start, OPD)
        difference = results.paired(*both, "entropy")
        text = f"AOPD keeps a higher entropy in training, {start} start"
        compared = f"mean entropy over all training steps at lr {results.rate:g}"
        yield Claim(text, "higher", compared, difference, "nats", judge(difference))


def _claim(results: Results, text: str, paper: str, compared: str, both: tuple[Config, Config]) -> Claim:
    difference = results.paired(*both, "learning_accuracy")
    return Claim(text, paper, compared, difference, "points", judge(difference))


def _retention(results: Results) -> Iterator[Claim]:
    found = pairs(results)
    for start in ("strong", "weak"):
        here = [pair for pair in found if pair.start == start]
        matched = [pair for pair in here if pair.matched]
        difference = at_matched_learning(results, matched, "first_retained")
        verdict = judge(difference) if matched or not here else UNMATCHED
        text = f"AOPD retains {results.first_task} better after the later stages, {start} start"
        compared = f"R[T][1] − R[1][1], mean of {plural(len(matched), 'pair')} matched in learning"
        yield Claim(text, "better", compared, difference, "points", verdict)


def _retention_sentence(results: Results, start: str, here: Sequence[Pair]) -> str:
    where = f"From the {start} start" if start else "From the only start"
    if not here:
        return f"{where} no AOPD setting has an OPD setting with the same seeds."
    matched = [pair for pair in here if pair.matched]
    if not matched:
        closest = min((pair.learning.mean for pair in here), key=abs)
        return f"{where} no pair is matched (closest: {points(closest)} points), so retention is not compared."
    kept, lost = (at_matched_learning(results, matched, figure) for figure in ("first_retained", "forgetting_chaudhry"))
    inside = sum(pair.equivalent for pair in matched)
    judged = {SHOWS: "AOPD retains more", CONTRADICTED: "AOPD retains less"}.get(judge(kept), "not resolved from zero")
    return (
        f"{where} {len(matched)} of {plural(len(here), 'AOPD setting')} learned as much as an OPD setting to within "
        f"±{100 * MARGIN:g} points ({inside} with the whole interval inside). Averaged over these pairs, AOPD minus OPD: "
        f"retention of {results.first_task} {_points(kept)} points ({judged}), forgetting (Chaudhry) {_points(lost)} points."
    )


def _points(interval: Interval) -> str:
    return "–" if math.isnan(interval.mean) else with_interval(interval, points)
