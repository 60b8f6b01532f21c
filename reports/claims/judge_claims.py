"""Judge claims on methods: the effect by seed at each place of a claim, its interval, and the verdict.

The rule is `harness.stats.verdicts`; p values are adjusted after Holm over all claims judged together. What is kept is judged
only where learning is matched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from harness.errors import ConfigError
from harness.stats.estimates import Estimate
from harness.stats.intervals import Interval, t_interval
from harness.stats.matching import MARGIN, MATCHED, ON_AVERAGE, how_matched
from harness.stats.significance import holm
from harness.stats.verdicts import NOT_RESOLVED, judge, p_of, seeds_to_resolve
from reports.claims.claim_file import ClaimEntry, claim_metrics, metrics_of_tasks
from reports.claims.grammar import Metric
from reports.data.methods import Method

NOT_SHOWN_TO_MATCH = "not resolved: learning not shown to match"
UNMATCHED = "not comparable: learning unmatched"


@dataclass(frozen=True)
class ClaimScope:
    """Where one row of a claim is judged: a start or two, and a task, each empty where the claim has none."""

    start: str = ""
    other: str = ""
    task: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim at one place: the effect by seed, its interval, Holm's p value and the verdict; `needed` seeds to resolve it.

    `compared` says what was compared, where a page has several settings to choose from.
    """

    entry: ClaimEntry
    place: ClaimScope
    effect: Interval
    p: float = math.nan
    adjusted: float = math.nan
    verdict: str = ""
    needed: int | None = None
    compared: str = ""


def verdicts(claims: Iterable[ClaimEntry], methods: Sequence[Method], margin: float = MARGIN) -> list[Verdict]:
    """Judge claims on methods, found by their adapter's name and their start; p values are adjusted over all of them."""
    judged = [
        verdict for entry in claims if entry.scope.rate == "own" for verdict in _at_places(entry, methods, margin)
    ]
    return judge_together(judged)


def judge_together(found: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts, p values adjusted after Holm over all of them; what has a verdict already keeps it."""
    adjusted, tests = holm([each.p for each in found]), sum(not math.isnan(each.p) for each in found)
    return [_judged(each, p, tests) for each, p in zip(found, adjusted, strict=True)]


def places(entry: ClaimEntry, starts: Sequence[str], trained: Sequence[str]) -> Iterator[ClaimScope]:
    """Yield where a claim is judged; two starts in the order of what is reported for them, the largest first."""
    tasks = [task for name in entry.scope.tasks for task in _tasks(name, trained)] if entry.scope.tasks else [""]
    for start, other in _starts(entry, starts):
        yield from (ClaimScope(start, other, task) for task in dict.fromkeys(tasks))


def filled(text: str, place: ClaimScope) -> str:
    """Fill a text's {task}, {one} and {other} in; braces of any other name stay as they are."""
    values = {"{task}": place.task, "{one}": place.start, "{other}": place.other}
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def effect_at(entry: ClaimEntry, place: ClaimScope, methods: Sequence[Method]) -> Estimate:
    """Return a claim's effect by seed at one place; empty where there are no such runs."""
    return entry.parsed.effect(lambda metric: _estimate(metric, entry, place, methods))


def verdict_at(entry: ClaimEntry, place: ClaimScope, methods: Sequence[Method], margin: float = MARGIN) -> Verdict:
    """Return a claim's effect at one place with its p value, to be judged with others by `judge_together`."""
    interval = t_interval(effect_at(entry, place, methods).by_seed)
    if entry.matched and interval.seeds and (why := _not_matched(entry, place, methods, margin)):
        return Verdict(entry, place, interval, verdict=why)
    return Verdict(entry, place, interval, p_of(interval, entry.parsed.sign, entry.smallest))


def _judged(found: Verdict, adjusted: float, tests: int) -> Verdict:
    sign, smallest = found.entry.parsed.sign, found.entry.smallest
    verdict = found.verdict or judge(found.effect, adjusted, sign, smallest)
    needed = seeds_to_resolve(found.effect, sign, smallest, tests) if verdict == NOT_RESOLVED else None
    return replace(found, adjusted=adjusted, verdict=verdict, needed=needed)


def _at_places(entry: ClaimEntry, methods: Sequence[Method], margin: float) -> Iterator[Verdict]:
    starts = list(dict.fromkeys(method.first.start for method in methods))
    trained = list(dict.fromkeys(task for method in methods for task in method.stage_of))
    _check_scope(entry, starts, methods)
    for place in places(entry, starts, trained):
        yield verdict_at(entry, place, methods, margin)


def _check_scope(entry: ClaimEntry, starts: Sequence[str], methods: Sequence[Method]) -> None:
    """Raise `ConfigError` for a start, task or stage that no run has; otherwise it would silently leave a claim out."""
    named = [entry.scope.start, *(metric.start for metric in entry.parsed.metrics)]
    _refuse_unknown(entry, "start", named, ["", "each", "pairs", "one", "other"], starts)
    tasks = list(dict.fromkeys(task for method in methods for task in method.tasks))
    _refuse_unknown(entry, "scope.tasks", entry.scope.tasks, ["first", "each"], tasks)
    stages = [len(method.first.stages) for method in methods if method.first.adapter in entry.parsed.adapters]
    if entry.scope.stage is not None and stages and entry.scope.stage > min(stages):
        raise ConfigError(
            f"claim {entry.name}: scope.stage is {entry.scope.stage}, and the runs have the stages 1 to {min(stages)}; name "
            "one of them, or null for the last"
        )


def _refuse_unknown(
    entry: ClaimEntry, key: str, named: Sequence[str], always: Sequence[str], known: Sequence[str]
) -> None:
    if unknown := [name for name in named if name not in (*always, *known)]:
        there = ", ".join(name for name in known if name) or "none"
        raise ConfigError(f"claim {entry.name}: {key} names {unknown[0]!r}, which no run has; the runs have {there}")


def _not_matched(entry: ClaimEntry, place: ClaimScope, methods: Sequence[Method], margin: float) -> str:
    """Say why what is kept cannot be judged; empty where the two adapters learned equally."""
    one, other = (_estimate(Metric(name, entry.matched or ""), entry, place, methods) for name in entry.parsed.adapters)
    status = how_matched(t_interval((one - other).by_seed), margin)
    return {MATCHED: "", ON_AVERAGE: NOT_SHOWN_TO_MATCH}.get(status, UNMATCHED)


def _estimate(metric: Metric, entry: ClaimEntry, place: ClaimScope, methods: Sequence[Method]) -> Estimate:
    named = {"one": place.start, "other": place.other, "": place.start}
    start = named.get(metric.start, metric.start)
    found = [method for method in methods if (method.first.adapter, method.first.start) == (metric.adapter, start)]
    if len(found) > 1:
        raise ConfigError(
            f"claim {entry.name}: {metric.adapter} is {' and '.join(method.name for method in found)} here; name the "
            "methods of one suite and order"
        )
    if not found:
        return Estimate({})
    task = place.task if metric.name in metrics_of_tasks() else ""
    return found[0].estimate(claim_metrics()[metric.name], task, entry.scope.stage)


def _starts(entry: ClaimEntry, starts: Sequence[str]) -> list[tuple[str, str]]:
    reported = entry.reported if isinstance(entry.reported, dict) else {}
    if entry.scope.start == "pairs":
        return list(combinations(sorted(starts, key=lambda start: -reported.get(start, 0)), 2))
    return [(start, "") for start in starts if entry.scope.start in ("each", start)]


def _tasks(name: str, trained: Sequence[str]) -> Sequence[str]:
    if name == "each":
        return trained
    return trained[:1] if name == "first" else [name]
