"""A study in sentences: what was done, how it was made, and what each figure's numbers say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain

from harness.study import Factor
from reports.study_claims import best_rate
from reports.study_data import AOPD, OPD, Config, Results
from reports.tables import Interval
from reports.words import plural, points, with_interval


def done(results: Results) -> list[str]:
    """Return what was done: suite, stages, probes, methods, seeds, runs and steps."""
    base, study = results.plan.base, results.plan.study
    entries = dict.fromkeys(spec.entry for spec in results.plan.specs)
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in results.frames.runs}))
    steps = results.frames.steps.groupby(["suite", "adapter", "order", "seed"]).size()
    items = sorted(int(n) for n in results.frames.scores["n"].unique() if n)
    evaluated = f"{items[0]} to {items[-1]}" if len(items) > 1 else str(items[0])
    return [
        f"Suite {study.suite}: stages {', then '.join(stage.task for stage in base.stages)}; "
        f"probes, never trained: {', '.join(base.probes) or 'none'}.",
        f"Methods {', '.join(entries)}; seeds {seeds}, where a factor does not say fewer; "
        f"{evaluated} test items per task.",
        f"{plural(len(results.frames.runs), 'run')} of {_range(steps)} steps each, {steps.sum():,} steps in all. One factor "
        f"is varied at a time: {', '.join(factor.title for factor in study.factors.values())}.",
    ]


def made(results: Results) -> list[str]:
    """Return how the page was made: command, code, dates and time."""
    manifests = [run.manifest for run in results.frames.runs]
    dates = sorted(
        str(m[key])[:16].replace("T", " ") for m in manifests for key in ("created", "finished") if m.get(key)
    )
    seconds = [run.seconds["total"] for run in results.frames.runs]
    known = [each for each in seconds if each == each]
    name = results.plan.study.name
    spent = f"{sum(known) / 3600:.1f} hours" if known else "unknown"
    noted = "" if len(known) == len(seconds) else f", noted by {len(known)} of {len(seconds)} runs"
    return [
        f"Command: `make study{'' if name == 'tiny' else f' STUDY={name}'}`; the runs' own: {_commands(manifests)}.",
        _code(manifests),
        f"Runs made from {dates[0]} to {dates[-1]} UTC; time of all runs added up, models included: {spent}{noted} "
        "(several went side by side).",
    ]


def setting(factor: Factor) -> str:
    """Return what a factor sets, for the line above its table."""
    fixed = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in factor.fixed.items())
    varied = f"`{factor.key}`" if factor.key else "the order of the stages" if len(factor.orders) > 1 else "the adapter"
    return f"Varied: {varied}{f', with {fixed}' if fixed else ''}."


def frontier(results: Results) -> str:
    """Return per start each method's learning and forgetting at the learning rate at which it learned most."""
    methods = [method for method in dict.fromkeys(results.points["adapter"]) if method != "none"]
    sentences = []
    for start in results.starts:
        best = [(method, *found) for method in methods if (found := best_rate(results, start, method))]
        where = f"from the {start} start" if start else "here"
        told = "; ".join(_best(results, *found) for found in best)
        sentences += [f"Each method at the learning rate where it learned most {where}: {told}."] if best else []
    return " ".join(sentences)


def training(results: Results) -> str:
    """Return the paired difference of entropy in the last stage, AOPD minus OPD, per start."""
    found = []
    for start in results.starts:
        suite = results.rates(start).get(results.rate, "")
        change = results.paired(Config(suite, AOPD), Config(suite, OPD), "entropy_last")
        if change.seeds:
            found.append(f"{with_interval(change, _nats)} nats from the {start} start ({plural(change.seeds, 'seed')})")
    return f"Entropy over the last stage, AOPD minus OPD: {'; '.join(found)}." if found else ""


def threshold(results: Results) -> str:
    """Return where learning is highest and forgetting lowest among AOPD's thresholds."""
    configs = results.thresholds
    learned, lost = (
        {tau: results.mean(config, name) for tau, config in configs.items()}
        for name in ("learning_accuracy", "forgetting_chaudhry")
    )
    most = max(learned, key=lambda tau: learned[tau].mean)
    least = min(lost, key=lambda tau: lost[tau].mean)
    caution = "One seed: no difference is established. " if learned[most].seeds < 2 else ""
    ends = [f"{tau:g}".replace("-", "−") for tau in (most, least)]
    return (
        f"{caution}Learning is highest at τ = {ends[0]} ({with_interval(learned[most])} %), forgetting lowest at "
        f"τ = {ends[1]} ({_points(lost[least])} points)."
    )


def _best(results: Results, method: str, rate: float, config: Config) -> str:
    learned, lost = (results.mean(config, name) for name in ("learning_accuracy", "forgetting_chaudhry"))
    return f"{method} ({rate:g}) learned {with_interval(learned)} % and forgot {_points(lost)} points"


def _points(interval: Interval) -> str:
    return with_interval(interval, points)


def _nats(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else "no"


def _commands(manifests: list) -> str:
    sessions = chain.from_iterable(m.get("sessions") or [m] for m in manifests)
    return ", ".join(f"`{command}`" for command in dict.fromkeys(str(s.get("command", "unknown")) for s in sessions))


def _code(manifests: list) -> str:
    """Say which commits the runs come from, and whether files differed from them."""
    sessions = list(chain.from_iterable(m.get("sessions") or [m] for m in manifests))
    gits = [session.get("git") or {} for session in sessions]
    commits = dict.fromkeys((git.get("commit") or "unknown")[:12] for git in gits)
    dirty = sum(any((s.get("git") or {}).get("dirty") for s in m.get("sessions") or [m]) for m in manifests)
    where = f"Commit {next(iter(commits))}" if len(commits) == 1 else f"The runs differ in commit: {', '.join(commits)}"
    changed = (
        f"{dirty} of {plural(len(manifests), 'run')} were made with uncommitted changes"
        if dirty
        else "no local changes"
    )
    return f"{where}; {changed}."
