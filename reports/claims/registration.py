"""Registered claims: record them before the first run, and let a report say when they were recorded."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.suite import Suite
from harness.rundir.reader import RunDir
from harness.rundir.registered_claims import configurations_of, covers
from harness.rundir.schema import RegisteredClaims, now
from reports.claims.claim_file import ClaimFile
from reports.claims.planned_looks import describe_looks, judged_runs
from reports.formatting import format_count


def registrations_of(file: ClaimFile, suites: Sequence[Suite]) -> list[RegisteredClaims]:
    """Return the registration of a claims file for each suite, made now."""
    when = now()
    return [
        RegisteredClaims(
            title=file.title,
            claims=file.digest,
            suite=suite.name,
            configurations=configurations_of(suite),
            when=when,
            seeds=suite.seeds,
            looks=suite.planned_looks,
        )
        for suite in suites
    ]


def describe_registration(file: ClaimFile, runs: Sequence[RunDir]) -> str:
    """Say whether a claims file was registered before its methods' first run, changed since then, or never registered."""
    judged = judged_runs(file, runs)
    same = [[each for each in run.manifest.registered if each.claims == file.digest] for run in judged]
    known = [each for run in judged for each in run.manifest.registered if each.title == file.title]
    several = _versions(file, judged)
    if judged and all(same):
        first = min(each.when for found in same for each in found)
        others = _other_seeds(file, judged) + _other_configurations(file, judged)
        return f"Registered before the first run, on {_day(first)}.{several}{others}"
    if any(same):
        late, when = sum(not found for found in same), min(each.when for found in same for each in found)
        return f"Registered on {_day(when)}, after {format_count(late, 'run')} of {len(judged)} had started.{several}"
    if known:
        return f"Changed after it was registered on {_day(known[0].when)}, so results may have decided the change.{several}"
    return "Not registered before the runs, so results may have decided what is claimed."


def describe_plan(file: ClaimFile, runs: Sequence[RunDir], planned: Sequence[int] = ()) -> str:
    """Return when the claims were registered, and at which numbers of seeds they are judged; see `describe_looks`."""
    return f"{describe_registration(file, runs)} {describe_looks(file, runs, planned)}"


def describe_source(file: ClaimFile, runs: Sequence[RunDir], planned: Sequence[int] = ()) -> str:
    """Return the paragraph above the verdicts: the claims' source, their relation to these runs, and their plan."""
    claimed = f"{file.title} (source: {file.source})."
    return " ".join(filter(None, [claimed, file.note, describe_plan(file, runs, planned)]))


def _versions(file: ClaimFile, runs: Sequence[RunDir]) -> str:
    """Say how many versions of the claims, of their seeds and looks or of a suite, were registered; empty for one."""
    by_run = [
        {each.model_copy(update={"when": ""}).model_dump_json(): each.when for each in registered}
        for run in runs
        if (registered := [each for each in reversed(run.manifest.registered) if each.title == file.title])
    ]
    most = max(by_run, key=len, default={})
    when = ", ".join(map(_day, sorted(most.values())))
    return f" {len(most)} versions of them were registered, on {when}." if len(most) > 1 else ""


def _other_seeds(file: ClaimFile, runs: Sequence[RunDir]) -> str:
    """Name the seeds that no registration planned; empty where one of an early version names none."""
    planned = [set(each.seeds) for run in runs for each in run.manifest.registered if each.claims == file.digest]
    added = sorted({run.seed for run in runs} - set().union(*planned)) if all(planned) else []
    return f" The registered plan does not have seed {', '.join(map(str, added))}." if added else ""


def _other_configurations(file: ClaimFile, runs: Sequence[RunDir]) -> str:
    """Name the runs whose configuration is not the one that was registered."""
    other = [
        run
        for run in runs
        if not any(covers(each, run.manifest) for each in run.manifest.registered if each.claims == file.digest)
    ]
    if not other:
        return ""
    which = ", ".join(dict.fromkeys(run.adapter for run in other))
    return (
        f" The configuration of {format_count(len(other), 'run')} of {len(runs)} ({which}) is not the registered one."
    )


def _day(when: str) -> str:
    return f"{when[:16].replace('T', ' ')} UTC"
