"""The sentences at the beginning and end of a study's page: what was run, and how the page was made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.rundir.schema import Manifest
from reports.document.sentences import describe_groups
from reports.formatting import format_count
from reports.study.study_results import RUN, Results


def describe_study(results: Results) -> list[str]:
    """Return sentences on what was run: suite, stages, probes, methods, seeds, runs and steps."""
    base, study = results.plan.base, results.plan.study
    entries = dict.fromkeys(spec.entry for spec in results.plan.specs)
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in results.frames.runs}))
    steps = results.frames.steps.groupby(RUN).size()
    fewer = ", fewer where a factor says so" if any(factor.seeds for factor in study.factors.values()) else ""
    theirs = "; claims name theirs" if study.claims else ""
    shown = f"Tables are of {results.profile} decoding, the suite's first profile, where they name no other{theirs}."
    controls = len(results.frames.runs) - len(steps)
    untrained = f"; {format_count(controls, 'more run')} without training" if controls else ""
    varied = ", ".join(factor.title for factor in study.factors.values())
    items = _describe_range(int(n) for n in results.frames.scores["n"].unique() if n)
    return [
        f"Suite {study.suite}: stages {', then '.join(stage.task for stage in base.stages)}; "
        f"probes, never trained: {', '.join(base.probes) or 'none'}.",
        f"Methods {', '.join(entries)}; seeds {seeds}{fewer}; {items} test items per task.",
        f"{format_count(len(steps), 'run')} of {_describe_range(steps)} steps each, {steps.sum():,} steps in all{untrained}. "
        f"One factor is varied at a time: {varied}.",
        *([shown] if results.profile else []),
        *describe_groups(results.frames),
    ]


def describe_making(results: Results) -> list[str]:
    """Return sentences on how the page was made: its command, the runs' commands, code, dates and total time."""
    manifests = [run.manifest for run in results.frames.runs]
    times = sorted(when[:16].replace("T", " ") for m in manifests for when in (m.made.created, m.finished) if when)
    seconds = [run.seconds["total"] for run in results.frames.runs]
    known = [each for each in seconds if each == each]
    spent = f"{sum(known) / 3600:.1f} hours" if known else "unknown"
    noted = "" if len(known) == len(seconds) else f", recorded by {len(known)} of {len(seconds)} runs"
    commands = dict.fromkeys(session.command or "unknown" for manifest in manifests for session in manifest.sessions)
    return [
        f"Command: {results.command}",
        f"Commands of the runs: {'; '.join(commands)}",
        _describe_code(manifests),
        f"Runs made from {times[0]} to {times[-1]} UTC; time of all runs added up, models included: {spent}{noted} "
        "(several ran in parallel).",
    ]


def _describe_code(manifests: Sequence[Manifest]) -> str:
    """Say which commits the runs come from, and how many runs had uncommitted changes."""
    commits = dict.fromkeys((session.git.commit or "unknown")[:12] for m in manifests for session in m.sessions)
    dirty = sum(any(session.git.dirty for session in m.sessions) for m in manifests)
    where = f"Commit {next(iter(commits))}" if len(commits) == 1 else f"The runs differ in commit: {', '.join(commits)}"
    changed = f"{dirty} of {format_count(len(manifests), 'run')} were made with uncommitted changes"
    return f"{where}; {changed if dirty else 'no local changes'}."


def _describe_range(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else "no"
