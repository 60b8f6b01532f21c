"""Judge claims on methods: the effect at each place of a claim, its interval for another seed and other items, the verdict.

The rules are `harness.stats.claim_verdicts`. The primary claims of a file are tested in its order, each at the place of the
first start, and only at the planned numbers of seeds (`reports.claims.planned_looks`). All other rows are exploratory and get
an interval and no verdict. Where the runs cannot test a claim, the row says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

from harness.errors import ConfigError
from harness.stats.claim_verdicts import (
    DIFFERENT,
    NO_VERDICT,
    NOT_RESOLVED,
    NOT_TESTABLE,
    gate,
    judge,
    p_of,
)
from harness.stats.intervals import NOTHING, Interval, t_interval
from harness.stats.looks import ALPHA, FEWEST_SEEDS, level_at
from harness.stats.paired import over_items
from harness.stats.two_way import two_way_interval
from reports.claims.claim_file import ClaimEntry, ClaimFile, claim_metrics
from reports.claims.evidence import ClaimScope, Evidence, MeasuredEffect, count_seeds, measure_effect
from reports.claims.planned_looks import find_looks
from reports.data.methods import Method, by_setting
from reports.formatting import format_count

EXPLORATORY = "exploratory"


@dataclass(frozen=True)
class Verdict:
    """A claim at one place: the effect, its interval with the two parts, the p value and the verdict.

    - `effect`: for another seed and other items; over seeds alone where answers were not kept.
    - `seeds`, `items`: its two parts, see `harness.stats.paired.Difference`.
    - `p`: of the test of `effect` against the smallest effect, not adjusted.
    - `verdict`: one of `harness.stats.claim_verdicts`, or EXPLORATORY. `reason` explains a missing verdict, `compared` says
      what was compared, `profile` names the evaluation profile.
    - `looked`: the number of seeds that counts for a look; `level`: the level of that look, nan where there is none.
    - `unfinished`: what `reason` lacks may come with runs that are not there yet.
    """

    entry: ClaimEntry
    place: ClaimScope
    effect: Interval = NOTHING
    seeds: Interval = NOTHING
    items: Interval = NOTHING
    p: float = math.nan
    verdict: str = EXPLORATORY
    reason: str = ""
    compared: str = ""
    profile: str = ""
    looked: int = 0
    level: float = math.nan
    unfinished: bool = False

    @property
    def primary(self) -> bool:
        """Whether the row is part of the sequence that is tested."""
        return self.verdict != EXPLORATORY


class JudgedSetting(NamedTuple):
    """A suite and an order, with the verdicts on claims that are judged on its methods alone."""

    suite: str
    order: str
    evidence: Evidence
    verdicts: list[Verdict]


def judge_by_setting(files: Sequence[ClaimFile], methods: Sequence[Method]) -> list[JudgedSetting]:
    """Return the verdicts by suite and order, since a claim names a method by its adapter and its start alone.

    A file's primary claims are tested in one of them: the first that has runs of all their adapters, the suite's own order
    before others. A start, task or stage that some settings lack is the reason there; raises `ConfigError` where all do.
    """
    settings = {key: Evidence(found) for key, found in by_setting(methods).items()}
    _refuse_unknown(files, list(settings.values()))
    tested = [(file, _tested_in(file, settings)) for file in files if settings]
    judged: list[JudgedSetting] = []
    for setting, evidence in settings.items():
        rows = [row for file, place in tested for row in _judge_file(file, evidence, (), tested=setting == place)]
        judged.append(JudgedSetting(*setting, evidence, rows))
    return judged


def _tested_in(file: ClaimFile, settings: Mapping[tuple[str, str], Evidence]) -> tuple[str, str]:
    """Return the suite and order in which a file's primary claims are tested."""
    asked = {name for entry in file.claims if entry.name in file.primary for name in entry.parsed.adapters}
    ordered = sorted(settings, key=lambda setting: setting[1] != "default")
    has_all = (key for key in ordered if asked <= {method.first.adapter for method in settings[key].methods})
    return next(has_all, ordered[0])


def judge_claims(
    files: Sequence[ClaimFile], evidence: Evidence, planned: Sequence[int] = (), primary: bool = True
) -> list[Verdict]:
    """Return the rows of all claims; each file's primary rows come first, in their order, and form one test sequence.

    Verdicts are given at looks: the numbers of seeds that the runs record, or `planned` where they record none. Without
    `primary` all rows are exploratory: a report that judges one file in several settings tests it in one of them. Raises
    `ConfigError` for a start, task or stage that no run has, because the claim would silently be left out.
    """
    _refuse_unknown(files, [evidence])
    return [row for file in files for row in _judge_file(file, evidence, planned, primary)]


def _judge_file(file: ClaimFile, evidence: Evidence, planned: Sequence[int], tested: bool) -> Iterator[Verdict]:
    looks = find_looks(file, evidence.runs, planned)
    rows = {entry.name: list(_rows(file, entry, evidence)) for entry in file.claims}
    if not tested:
        yield from (row for found in rows.values() for row in found)
        return
    starts = [format_count(len(evidence.starts), "start"), *filter(None, evidence.starts)]
    nowhere = f"it compares two starts, and the runs have {', '.join(starts)}"
    first = {entry.name: (*rows[entry.name], Verdict(entry, ClaimScope(), reason=nowhere))[0] for entry in file.claims}
    primary = [_decide(first[name], looks) for name in file.primary]
    for row, verdict in zip(primary, gate([row.verdict for row in primary]), strict=True):
        yield row if verdict == row.verdict else replace(row, verdict=verdict, reason=_closed_by(primary))
    for name, found in rows.items():
        yield from found[1:] if name in file.primary else found


def _rows(file: ClaimFile, entry: ClaimEntry, evidence: Evidence) -> Iterator[Verdict]:
    """Yield a claim's measured effect at each of its places, before any verdict."""
    if lacking := _lacking(entry, evidence):
        yield Verdict(entry, ClaimScope(), reason=lacking)
        return
    for place in places(entry, evidence):
        found = measure_effect(entry, place, file.profile_of(entry), evidence)
        looked = 0 if found.unfinished else count_seeds(entry, place, evidence, found.estimate)
        yield _measured(entry, place, found, looked)


def _measured(entry: ClaimEntry, place: ClaimScope, found: MeasuredEffect, looked: int) -> Verdict:
    row = Verdict(entry, place, reason=found.reason, compared=found.compared, profile=found.profile, looked=looked)
    if not found.estimate.by_seed:
        reason = found.reason or "no seed has all the scores that it compares"
        return replace(row, reason=reason, unfinished=found.unfinished or not found.reason)
    change = found.estimate
    parts = two_way_interval(change), t_interval(change.values), over_items(change) if change.items else NOTHING
    parts = [part.widened(found.widening) for part in parts]
    if entry.parsed.is_difference:  # any other expression may leave the bounds of its metrics
        unit = claim_metrics()[entry.parsed.metrics[0].name].unit
        parts = [part.of_difference(unit) for part in parts]
    effect, seeds, items = parts
    p = p_of(effect, entry.parsed.sign, entry.smallest)
    return replace(row, effect=effect, seeds=seeds, items=items, p=p)


def _decide(row: Verdict, looks: Sequence[int]) -> Verdict:
    """Return a row with the verdict that it has without the other rows of its sequence."""
    if row.reason or row.effect.seeds < FEWEST_SEEDS:
        # Until a claim has the runs that are planned for it, it closes the sequence: with them it may show no difference.
        later = [look for look in looks if look > row.looked]
        waits = bool(later) and (row.unfinished or not row.reason)
        few = f"fewer than {FEWEST_SEEDS} seeds"
        if waits and row.looked not in looks:
            few = _no_look(row.looked, looks)
        elif waits:
            few = f"{few} have an effect; the next look is at {later[0]}"
        return replace(row, verdict=NO_VERDICT if waits else NOT_TESTABLE, reason=row.reason or few)
    entry, level = row.entry, level_at(row.looked, looks)
    alone, verdict = (judge(row.effect, entry.parsed.sign, entry.smallest, entry.zone, each) for each in (ALPHA, level))
    row = replace(row, verdict=verdict, level=level)
    if verdict == NO_VERDICT:
        return replace(row, reason=_no_look(row.looked, looks))
    if verdict == NOT_RESOLVED != alone:
        at = f"at the look at {row.looked} of {looks[-1]} planned seeds p has to be at most {100 * level:.2g} %"
        return replace(row, reason=f"{alone} at 5 %, but {at}")
    return row


def _no_look(seeds: int, looks: Sequence[int]) -> str:
    """Say that no look was planned at a number of seeds, and where the next or the last one is."""
    if later := [look for look in looks if look > seeds]:
        return f"no look at {seeds} seeds; the next is at {later[0]}"
    added = format_count(seeds - looks[-1], "seed")
    return f"no look at {seeds} seeds; the last was at {looks[-1]}, and {added} added after it give no new test"


def _closed_by(primary: Sequence[Verdict]) -> str:
    """Say which claim ended the sequence."""
    last = next(row for row in primary if row.verdict not in (*DIFFERENT, NOT_TESTABLE))
    what = "has no verdict" if last.verdict == NO_VERDICT else f"is {last.verdict}"
    return f"the sequence ends with {last.entry.name}, which {what}"


def places(entry: ClaimEntry, evidence: Evidence) -> Iterator[ClaimScope]:
    """Yield the places where a claim is judged; of a pair of starts, the one with the larger reported figure comes first."""
    tasks = [task for name in entry.scope.tasks for task in _tasks(name, evidence)] if entry.scope.tasks else [""]
    for start, other in _starts(entry, evidence.starts):
        yield from (ClaimScope(start, other, task) for task in dict.fromkeys(tasks))


def _refuse_unknown(files: Sequence[ClaimFile], settings: Sequence[Evidence]) -> None:
    for entry in (entry for file in files for entry in file.claims):
        if settings and all(lacking := [_lacking(entry, evidence) for evidence in settings]):
            raise ConfigError(f"claim {entry.name}: {lacking[0]}")


def _lacking(entry: ClaimEntry, evidence: Evidence) -> str:
    """Say which start, task or stage of a claim no run has; empty where there is none."""
    starts = [entry.scope.start, *(metric.start for metric in entry.parsed.metrics)]
    tasks = list(dict.fromkeys(task for each in (*evidence.methods, *evidence.branches) for task in each.tasks))
    named = [
        ("start", starts, ["", "each", "pairs", "one", "other"], evidence.starts),
        ("scope.tasks", entry.scope.tasks, ["first", "each", "before"], tasks),
    ]
    for key, values, always, known in named:
        if unknown := [value for value in values if value not in (*always, *known)]:
            there = ", ".join(filter(None, known)) or "none"
            return f"{key} names {unknown[0]!r}, which no run has; the runs have {there}"
    runs = [method.first for method in evidence.methods if method.first.adapter in entry.parsed.adapters]
    stages = [len(run.stages) for run in runs]
    if entry.scope.last is not None and stages and entry.scope.last > min(stages):
        return (
            f"scope.stage is {entry.scope.last}, and the runs have the stages 1 to {min(stages)}; name one of them, or null "
            "for the last"
        )
    return ""


def _starts(entry: ClaimEntry, starts: Sequence[str]) -> list[tuple[str, str]]:
    reported = entry.reported if isinstance(entry.reported, dict) else {}
    if all(metric.start not in ("", "one", "other") for metric in entry.parsed.metrics):
        return [("", "")]  # the expression says where
    if entry.scope.start == "pairs":
        return list(combinations(sorted(starts, key=lambda start: -reported.get(start, 0)), 2))
    return [(start, "") for start in starts if entry.scope.start in ("each", start)]


def _tasks(name: str, evidence: Evidence) -> Sequence[str]:
    named = {"each": evidence.trained, "first": evidence.first, "before": evidence.trained_before}
    return named.get(name, [name])
