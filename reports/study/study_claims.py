"""A study's verdicts on the shipped claims about AOPD against OPD (`claims/aopd.yaml`), judged from its runs alone.

The judge is the one of `harness compare --claims`. A study has more runs than one comparison: it also takes each method at its
best learning rate, and what is kept it compares over all settings that are matched in learning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from harness.stats.intervals import Interval, t_interval
from harness.stats.significance import holm
from reports.claims.claim_file import ClaimEntry, read_claims
from reports.claims.judge import NOT_SHOWN_TO_MATCH, UNMATCHED, ClaimScope, effect_at, filled, judge, p_of, places
from reports.claims.verdict_views import reported
from reports.compare.rows import MATCHED, ON_AVERAGE
from reports.data.methods import Method
from reports.document.sentences import format_count
from reports.study.data import AOPD, OPD, Results
from reports.study.pairs import FORGETTING, NOTHING, RETENTION, MatchedPair, at_matched_learning, pairs

CLAIMS = "aopd"
MATCHINGS = {matching.learned: matching for matching in (RETENTION, FORGETTING)}
FIGURES = {"learned": "first_learned"}  # what a study calls a claim's metric of its first task


@dataclass(frozen=True)
class Claim:
    """A claim at one place, what was compared for it, the paired difference AOPD minus OPD, and the verdict.

    `adjusted` is Holm's p value, nan for what is not tested.
    """

    entry: ClaimEntry
    claim: str
    paper: str
    compared: str
    difference: Interval
    adjusted: float = math.nan
    verdict: str = ""


def claims(results: Results) -> list[Claim]:
    """Return the claims with their verdicts: the paper's, and what stands beside them."""
    methods = _methods(results)
    found = [claim for entry in read_claims(CLAIMS).claims for claim in _rows(results, entry, methods)]
    adjusted = holm([p_of(each.difference, each.entry.parsed.sign, each.entry.smallest) for each in found])
    return [
        replace(each, adjusted=p, verdict=each.verdict or _judged(each, p))
        for each, p in zip(found, adjusted, strict=True)
    ]


def judged(results: Results) -> bool:
    """Whether a study has runs for any claim, and varies what a claim rests on: more than its methods."""
    methods_alone = all(factor.of_entries for factor in results.plan.study.factors.values())
    return not methods_alone and any(claim.difference.seeds for claim in claims(results))


def chosen_rates(results: Results, start: str, adapter: str, figure: str) -> pd.DataFrame:
    """Return per seed the learning rate at which the other seeds' mean is highest, and the figure there.

    Columns `rate` and `value`; seeds that lack a rate are left out, and no seed is left where there are fewer than two.
    """
    by_rate = {rate: results.series(config, figure) for rate, config in results.rates(start, adapter).items()}
    table = pd.DataFrame(by_rate).dropna(axis="columns", how="all").dropna()
    if len(table) < 2:
        return pd.DataFrame({"rate": [], "value": []}, dtype=float)
    chosen = (table.sum() - table).idxmax(axis="columns")
    return pd.DataFrame({"rate": chosen, "value": [table.at[seed, rate] for seed, rate in chosen.items()]})


def edge(rate: float, tried: Sequence[float]) -> str:
    """Say where a learning rate lies at the end of those tried, beyond which a better one may lie."""
    if len(tried) > 1 and rate in {min(tried), max(tried)}:
        return f", the {'lowest' if rate == min(tried) else 'highest'} tried"
    return ""


def _rows(results: Results, entry: ClaimEntry, methods: Sequence[Method]) -> Iterator[Claim]:
    for place in places(entry, results.starts, [results.first_task]):
        if entry.scope.rate == "best":
            yield from _at_chosen_rates(results, entry, place)
        elif entry.matched:
            yield _at_matched(results, entry, place)
        else:
            compared = f"{filled(entry.compared, place)} {_at(results)}"
            yield _claim(entry, place, compared, t_interval(effect_at(entry, place, methods)))


def _claim(entry: ClaimEntry, place: ClaimScope, compared: str, difference: Interval, verdict: str = "") -> Claim:
    start = "" if place.other else _from(place.start)
    best = ", best lr" if entry.scope.rate == "best" else ""
    text = f"{filled(entry.text, place)}{start}{best}"
    return Claim(entry, text, reported(entry, place), compared, difference, verdict=verdict)


def _judged(claim: Claim, adjusted: float) -> str:
    return judge(claim.difference, adjusted, claim.entry.parsed.sign, claim.entry.smallest)


def _methods(results: Results) -> list[Method]:
    """Return AOPD and OPD from each start at the suite's own learning rate, where there are finished runs."""
    found: list[Method] = []
    for start in results.starts:
        for adapter in (AOPD, OPD):
            config = results.own(start, adapter)
            runs = tuple(run for run in results.frames.runs if (run.suite, run.adapter, run.order) == config)
            found += [Method(adapter, replace(results.frames, runs=runs))] if runs else []
    return found


def _at_chosen_rates(results: Results, entry: ClaimEntry, place: ClaimScope) -> Iterator[Claim]:
    """Compare each method at its best learning rate; a seed's rate is chosen on the other seeds."""
    tried = [list(results.rates(place.start, adapter)) for adapter in (AOPD, OPD)]
    if max(map(len, tried)) < 2:
        return
    figure = FIGURES[entry.parsed.metrics[0].name]
    chosen = [chosen_rates(results, place.start, adapter, figure) for adapter in (AOPD, OPD)]
    parts = [
        f"{adapter} {' or '.join(f'{rate:g}{edge(rate, rates)}' for rate in table['rate'].unique())}"
        for adapter, table, rates in zip(("AOPD", "OPD"), chosen, tried, strict=True)
    ]
    compared = f"{entry.compared}, each at its best lr, which the other seeds chose ({'; '.join(parts)})"
    yield _claim(entry, place, compared, t_interval(chosen[0]["value"] - chosen[1]["value"]))


def _at_matched(results: Results, entry: ClaimEntry, place: ClaimScope) -> Claim:
    """Fill in the difference over the pairs matched in learning, or why there is none."""
    matching = MATCHINGS[FIGURES.get(entry.matched or "", entry.matched or "")]
    here = [pair for pair in pairs(results, matching) if pair.start == place.start]
    matched = [pair for pair in here if pair.status == MATCHED]
    average = any(pair.status == ON_AVERAGE for pair in here)
    verdict = "" if matched or not here else NOT_SHOWN_TO_MATCH if average else UNMATCHED
    compared = f"{entry.compared}, {_counted(matched, len(here))} matched in {matching.learned_as}{_named(matched)}"
    difference = at_matched_learning(results, matched, matching) if matched else NOTHING
    return _claim(entry, place, compared, difference, verdict)


def _counted(matched: Sequence[MatchedPair], found: int) -> str:
    return f"over the {len(matched)} of {format_count(found, 'pair')}" if matched else "no pair is"


def _named(matched: Sequence[MatchedPair]) -> str:
    """Name the learning rates of the pairs and say how they were chosen, since a verdict holds for these alone."""
    if not matched:
        return ""
    rates = "; ".join(f"AOPD {pair.rates[0]:g} beside OPD {pair.rates[1]:g}" for pair in matched)
    return f" ({rates}; the OPD setting is the closest on the same seeds, and may serve several AOPD settings)"


def _at(results: Results) -> str:
    rates = dict.fromkeys(results.rate(adapter) for adapter in (AOPD, OPD))
    return f"at lr {' and '.join(f'{rate:g}' for rate in rates)}"


def _from(start: str) -> str:
    return f", {start} start" if start else ""
