"""Registered claims: record them before the first run, and let a report say when they were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from harness.config.base import digest
from harness.config.suite import Suite
from harness.rundir.reader import RunDir
from harness.rundir.registered_claims import configurations_of, covers
from harness.rundir.schema import RegisteredClaims
from reports.claims.claim_file import ClaimFile
from reports.formatting import format_count


def claims_digest(file: ClaimFile) -> str:
    """Return the digest of a claims file's content; comments and the order of keys do not change it."""
    return digest(file.model_dump(mode="json", exclude_defaults=True))


def registrations_of(file: ClaimFile, suites: Sequence[Suite]) -> list[RegisteredClaims]:
    """Return the registration of a claims file for each suite, made now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        RegisteredClaims(
            title=file.title,
            claims=claims_digest(file),
            suite=suite.name,
            configurations=configurations_of(suite),
            when=now,
        )
        for suite in suites
    ]


def describe_registration(file: ClaimFile, runs: Sequence[RunDir]) -> str:
    """Say whether a claims file was registered before its methods' first run, changed since then, or never registered."""
    adapters = {name for claim in file.claims for name in claim.parsed.adapters}
    judged = [run for run in runs if run.adapter in adapters]
    now = claims_digest(file)
    same = [[each for each in run.manifest.registered if each.claims == now] for run in judged]
    known = [each for run in judged for each in run.manifest.registered if each.title == file.title]
    if judged and all(same):
        first = min(each.when for found in same for each in found)
        return f"Registered before the first run, on {_day(first)}.{_other_configurations(judged)}"
    if any(same):
        late, when = sum(not found for found in same), min(each.when for found in same for each in found)
        return f"Registered on {_day(when)}, after {format_count(late, 'run')} of {len(judged)} had started."
    if known:
        return f"Changed after it was registered on {_day(known[0].when)}: these claims are exploratory."
    return "Not registered before the runs: these claims are exploratory."


def describe_source(file: ClaimFile, runs: Sequence[RunDir]) -> str:
    """Return the paragraph above the verdicts: the claims' source, their relation to these runs, and their registration."""
    return " ".join(
        filter(None, [f"{file.title}, claimed in {file.source}.", file.note, describe_registration(file, runs)])
    )


def _other_configurations(runs: Sequence[RunDir]) -> str:
    """Name the runs whose configuration is not the one that was registered."""
    other = [run for run in runs if not any(covers(each, run.manifest) for each in run.manifest.registered)]
    if not other:
        return ""
    which = ", ".join(dict.fromkeys(run.adapter for run in other))
    return (
        f" The configuration of {format_count(len(other), 'run')} of {len(runs)} ({which}) is not the registered one."
    )


def _day(when: str) -> str:
    return f"{when[:16].replace('T', ' ')} UTC"
