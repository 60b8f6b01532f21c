"""The paper's claims about AOPD against OPD (arXiv 2605.06387), each judged from a study's runs alone.

A claim shows, or is contradicted, when the paired difference over at least three seeds differs from zero at 5 % in a t
test, adjusted after Holm (1979) over all claims that can be tested. What is kept is judged only at matched learning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from harness.stats import Interval, holm, p_value, t_interval
from reports.study_data import AOPD, OPD, Results
from reports.study_pairs import (
    FORGETTING,
    MATCHED,
    NOTHING,
    ON_AVERAGE,
    RETENTION,
    Matching,
    Pair,
    at_matched_learning,
    pairs,
)
from reports.words import has_width, plural, resolved

SHOWS, CONTRADICTED, NOT_RESOLVED, NO_RUNS = "shows", "contradicted", "not resolved", "no runs"
NOT_SHOWN_TO_MATCH = "not resolved: learning not shown to match"
UNMATCHED = "not comparable: learning unmatched"
LEVEL, SEEDS = 0.05, 3
PAPER = {"weak": 8.34, "strong": 4.09}  # points in math, AOPD over OPD, by start


@dataclass(frozen=True)
class Claim:
    """A claim, what was compared for it, the paired difference AOPD minus OPD, and the verdict.

    `sign` is the difference's where the claim holds, `adjusted` Holm's p value, nan for what is not tested.
    """

    claim: str
    paper: str
    compared: str
    difference: Interval
    unit: str = "points"
    sign: int = 1
    adjusted: float = float("nan")
    verdict: str = ""


def claims(results: Results) -> list[Claim]:
    """Return the claims with their verdicts: the paper's, and what stands beside them."""
    found = [*_learning(results), *_entropy(results), *_kept(results)]
    adjusted = holm([_p(claim.difference) for claim in found])
    return [
        replace(claim, adjusted=p, verdict=claim.verdict or judge(claim.difference, p, claim.sign))
        for claim, p in zip(found, adjusted, strict=True)
    ]


def judged(results: Results) -> bool:
    """Whether a study has runs for any claim, and varies what a claim rests on: more than its methods."""
    methods_alone = all(factor.of_entries for factor in results.plan.study.factors.values())
    return not methods_alone and any(claim.difference.seeds for claim in claims(results))


def judge(difference: Interval, adjusted: float, sign: int = 1) -> str:
    """Return the verdict on a claim that a difference has a sign."""
    if not difference.seeds:
        return NO_RUNS
    if not resolved(difference, SEEDS) or adjusted > LEVEL:
        return NOT_RESOLVED
    return SHOWS if sign * difference.mean > 0 else CONTRADICTED


def _p(difference: Interval) -> float:
    """Return the p value of a difference over enough seeds to be judged, else nan."""
    return p_value(difference) if has_width(difference, SEEDS) else float("nan")


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


def _learning(results: Results) -> Iterator[Claim]:
    first = f"R[1][1] of {results.first_task}"
    for start in results.starts:
        both, where, at = (results.own(start, AOPD), results.own(start, OPD)), _from(start), _at(results)
        paper = f"{PAPER[start]:+.2f} points, math" if start in PAPER else "–"
        difference = results.paired(*both, "first_learned")
        yield Claim(f"AOPD learns {results.first_task} better than OPD{where}", paper, f"{first} {at}", difference)
        yield from _at_chosen_rates(results, start)
        difference = results.paired(*both, "learning_accuracy")
        yield Claim(f"AOPD learns all tasks better than OPD{where}", "–", f"learning accuracy {at}", difference)
    yield from _larger_gains(results)


def _larger_gains(results: Results) -> Iterator[Claim]:
    """Compare AOPD's gain in the first task between starts, in the paper's order where it has both."""
    for one, other in combinations(sorted(results.starts, key=lambda start: -PAPER.get(start, 0)), 2):
        paper = f"{PAPER[one] - PAPER[other]:+.2f} points, math" if {one, other} <= set(PAPER) else "–"
        text = f"AOPD's gain in {results.first_task} is larger from the {one} start than from the {other} one"
        compared = f"difference of the two differences in R[1][1] of {results.first_task} {_at(results)}"
        yield Claim(text, paper, compared, t_interval(_gain(results, one) - _gain(results, other)))


def _at_chosen_rates(results: Results, start: str) -> Iterator[Claim]:
    """Compare each method at its best learning rate; a seed's rate is chosen on the other seeds."""
    tried = [list(results.rates(start, adapter)) for adapter in (AOPD, OPD)]
    if max(map(len, tried)) < 2:
        return
    chosen = [chosen_rates(results, start, adapter, "first_learned") for adapter in (AOPD, OPD)]
    parts = [
        f"{adapter} {' or '.join(f'{rate:g}{edge(rate, rates)}' for rate in table['rate'].unique())}"
        for adapter, table, rates in zip(("AOPD", "OPD"), chosen, tried, strict=True)
    ]
    compared = f"R[1][1], each at its best lr, which the other seeds chose ({'; '.join(parts)})"
    difference = t_interval(chosen[0]["value"] - chosen[1]["value"])
    yield Claim(f"AOPD learns {results.first_task} better than OPD{_from(start)}, best lr", "–", compared, difference)


def _entropy(results: Results) -> Iterator[Claim]:
    for start in results.starts:
        difference = results.paired(results.own(start, AOPD), results.own(start, OPD), "entropy")
        compared = f"mean entropy over all training steps {_at(results)}"
        yield Claim(f"AOPD keeps a higher entropy in training{_from(start)}", "higher", compared, difference, "nats")


def _kept(results: Results) -> Iterator[Claim]:
    for start in results.starts:
        text = f"at matched learning, AOPD retains {results.first_task} better{_from(start)}"
        yield _at_matched(results, RETENTION, start, Claim(text, "better", "R[T][1] − R[1][1]", NOTHING))
        text = f"at matched learning, AOPD forgets less than OPD{_from(start)}"
        yield _at_matched(results, FORGETTING, start, Claim(text, "–", "forgetting, Chaudhry", NOTHING, sign=-1))


def _at_matched(results: Results, matching: Matching, start: str, claim: Claim) -> Claim:
    """Fill in the difference over the pairs matched in learning, or why there is none."""
    here = [pair for pair in pairs(results, matching) if pair.start == start]
    matched = [pair for pair in here if pair.status == MATCHED]
    average = any(pair.status == ON_AVERAGE for pair in here)
    verdict = "" if matched or not here else NOT_SHOWN_TO_MATCH if average else UNMATCHED
    compared = f"{claim.compared}, {_counted(matched, len(here))} matched in {matching.learned_as}{_named(matched)}"
    difference = at_matched_learning(results, matched, matching)
    return replace(claim, compared=compared, difference=difference, verdict=verdict)


def _counted(matched: Sequence[Pair], found: int) -> str:
    return f"over the {len(matched)} of {plural(found, 'pair')}" if matched else "no pair is"


def _named(matched: Sequence[Pair]) -> str:
    """Name the learning rates of the pairs and say how they were chosen, since a verdict holds for these alone."""
    if not matched:
        return ""
    rates = "; ".join(f"AOPD {pair.rates[0]:g} beside OPD {pair.rates[1]:g}" for pair in matched)
    return f" ({rates}; the OPD setting is the closest on the same seeds, and may serve several AOPD settings)"


def _gain(results: Results, start: str) -> pd.Series:
    one, other = (results.series(results.own(start, adapter), "first_learned") for adapter in (AOPD, OPD))
    return one - other


def _at(results: Results) -> str:
    rates = dict.fromkeys(results.rate(adapter) for adapter in (AOPD, OPD))
    return f"at lr {' and '.join(f'{rate:g}' for rate in rates)}"


def _from(start: str) -> str:
    return f", {start} start" if start else ""
