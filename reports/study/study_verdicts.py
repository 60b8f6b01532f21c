"""A study's verdicts on the claims files that its YAML names, judged only from its runs.

The judge is the one of `harness compare --claims`. A study has more runs than one comparison: it also takes each method at its
best learning rate, and what is kept it compares over all settings that are matched in learning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.stats.intervals import Interval, t_interval
from harness.stats.matching import MATCHED, ON_AVERAGE
from harness.stats.rates import chosen_rates
from harness.stats.verdicts import p_of
from reports.claims.claim_file import ClaimEntry, ClaimFile, read_claims
from reports.claims.judge_claims import (
    NOT_SHOWN_TO_MATCH,
    UNMATCHED,
    ClaimScope,
    Verdict,
    filled,
    judge_together,
    places,
    verdict_at,
)
from reports.data.methods import Method
from reports.document.sentences import format_count
from reports.study.matched_settings import (
    FORGETTING,
    RETENTION,
    MatchedPair,
    Matching,
    difference_at_matched_learning,
    pair_settings,
)
from reports.study.study_results import Results

MATCHINGS = {matching.learned: matching for matching in (RETENTION, FORGETTING)}
OF_FIRST_TASK = {
    "learned": "first_learned",
    "retained": "first_retained",
}


def claim_files(results: Results) -> list[ClaimFile]:
    """Return the claims files that the study names."""
    return [read_claims(name) for name in results.plan.study.claims]


def judge_study(results: Results) -> list[Verdict]:
    """Return the verdicts on the study's claims, p values adjusted over all rows; none where no claim has runs."""
    entries = [entry for file in claim_files(results) for entry in file.claims]
    methods = _methods(results, list(dict.fromkeys(name for entry in entries for name in entry.parsed.adapters)))
    rows = [row for entry in entries for row in _rows(results, entry, methods)]
    return judge_together(rows) if any(row.effect.seeds for row in rows) else []


def name_edge(rate: float, tried: Sequence[float]) -> str:
    """Say where a learning rate lies at the end of those tried, beyond which a better one may lie."""
    if len(tried) > 1 and rate in {min(tried), max(tried)}:
        return f", the {'lowest' if rate == min(tried) else 'highest'} tried"
    return ""


def _methods(results: Results, adapters: Sequence[str]) -> list[Method]:
    """Return the claims' methods from each start at the suite's own learning rate, where there are finished runs."""
    found: list[Method] = []
    for start in results.starts:
        for adapter in adapters:
            config = results.own(start, adapter)
            runs = tuple(run for run in results.frames.runs if (run.suite, run.adapter, run.order) == config)
            found += [Method(adapter, replace(results.frames, runs=runs))] if runs else []
    return found


def _rows(results: Results, entry: ClaimEntry, methods: Sequence[Method]) -> Iterator[Verdict]:
    for place in places(entry, results.starts, [results.first_task]):
        if entry.scope.rate == "best":
            yield from _at_chosen_rates(results, entry, place)
        elif OF_FIRST_TASK.get(entry.matched or "", entry.matched) in MATCHINGS:
            yield _at_matched(results, entry, place)
        else:
            rates = dict.fromkeys(f"{results.rate(adapter):g}" for adapter in entry.parsed.adapters)
            compared = f"{filled(entry.compared, place)} at lr {' and '.join(rates)}"
            yield replace(verdict_at(entry, place, methods), compared=compared)


def _verdict(entry: ClaimEntry, place: ClaimScope, compared: str, effect: Interval, verdict: str = "") -> Verdict:
    p = p_of(effect, entry.parsed.sign, entry.smallest)
    return Verdict(entry, place, effect, p, verdict=verdict, compared=compared)


def _at_chosen_rates(results: Results, entry: ClaimEntry, place: ClaimScope) -> Iterator[Verdict]:
    """Compare each method at its best learning rate; a seed's rate is chosen on the other seeds."""
    if len(entry.parsed.adapters) != 2:
        return
    one, other = entry.parsed.adapters
    tried = [list(results.rates(place.start, adapter)) for adapter in (one, other)]
    if max(map(len, tried)) < 2:
        return
    metric = entry.parsed.metrics[0].name
    figure = OF_FIRST_TASK.get(metric, metric)
    chosen = [
        chosen_rates(
            {rate: results.by_seed(config, figure) for rate, config in results.rates(place.start, name).items()}
        )
        for name in (one, other)
    ]
    used = [list(dict.fromkeys(each.rate for each in by_seed.values())) for by_seed in chosen]
    parts = [
        f"{adapter} {' or '.join(f'{rate:g}{name_edge(rate, rates)}' for rate in best)}"
        for adapter, best, rates in zip((one, other), used, tried, strict=True)
    ]
    compared = f"{entry.compared}, each at its best lr, which the other seeds chose ({'; '.join(parts)})"
    change = {seed: chosen[0][seed].value - chosen[1][seed].value for seed in chosen[0] if seed in chosen[1]}
    yield _verdict(entry, place, compared, t_interval(change))


def _at_matched(results: Results, entry: ClaimEntry, place: ClaimScope) -> Verdict:
    """Compare what was kept over the settings that are matched in learning; without any, say why there is no verdict."""
    one, other = entry.parsed.adapters
    matching = MATCHINGS[OF_FIRST_TASK.get(entry.matched or "", entry.matched or "")]
    found = [pair for pair in pair_settings(results, matching, (one, other)) if pair.start == place.start]
    matched = [pair for pair in found if pair.status == MATCHED]
    verdict = "" if matched else _why_not(found)
    effect = difference_at_matched_learning(results, matched, matching)
    return _verdict(entry, place, f"{entry.compared}, {_name_pairs(found, matched, matching)}", effect, verdict)


def _why_not(found: Sequence[MatchedPair]) -> str:
    """Say why what is kept cannot be judged; empty where there are no pairs, so that the judge says that there are no runs."""
    if not found:
        return ""
    return NOT_SHOWN_TO_MATCH if any(pair.status == ON_AVERAGE for pair in found) else UNMATCHED


def _name_pairs(found: Sequence[MatchedPair], matched: Sequence[MatchedPair], matching: Matching) -> str:
    """Name the learning rates of the pairs and say how they were chosen, since a verdict holds only for these."""
    if not matched:
        return f"no pair is matched in {matching.learned_as}"
    one, other = matched[0].methods
    rates = "; ".join(f"{one} {pair.rates[0]:g} with {other} {pair.rates[1]:g}" for pair in matched)
    return (
        f"over the {len(matched)} of {format_count(len(found), 'pair')} matched in {matching.learned_as} ({rates}; the "
        f"{other} setting is the closest on the same seeds, and may serve several {one} settings)"
    )
