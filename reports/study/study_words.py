"""A study in sentences: what was done, how it was made, and what each figure's numbers say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

from harness.config.study import Factor
from harness.rundir.schema import Manifest
from reports.document.sentences import format_count, format_interval, format_nats_change, format_points
from reports.study.data import AOPD, OPD, Config, Results
from reports.study.study_claims import edge


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
        f"{format_count(len(results.frames.runs), 'run')} of {_range(steps)} steps each, {steps.sum():,} steps in all. "
        f"One factor is varied at a time: {', '.join(factor.title for factor in study.factors.values())}.",
    ]


def made(results: Results, page: Path) -> list[str]:
    """Return how the page was made: the command that makes it again, code, dates and time."""
    manifests = [run.manifest for run in results.frames.runs]
    dates = sorted(when[:16].replace("T", " ") for m in manifests for when in (m.made.created, m.finished) if when)
    seconds = [run.seconds["total"] for run in results.frames.runs]
    known = [each for each in seconds if each == each]
    command = results.plan.command(page)
    name = results.plan.study.name
    make = {"tiny": "make study", "adapters": "make study STUDY=adapters"}.get(name, "")
    short = f" (`{make}`)" if make and command == f"harness study {name} --out runs" else ""
    spent = f"{sum(known) / 3600:.1f} hours" if known else "unknown"
    noted = "" if len(known) == len(seconds) else f", noted by {len(known)} of {len(seconds)} runs"
    return [
        f"Command: `{command}`{short}; the runs' own: {_commands(manifests)}.",
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
    """Return per start each method's learning and forgetting at the rate where it learned most, or at its only one."""
    methods = [method for method in dict.fromkeys(results.points["adapter"]) if method not in results.controls]
    sentences = []
    for start in results.starts:
        told = [sentence for method in methods if (sentence := _at_best_rate(results, start, method))]
        sentences += [f"{f'From the {start} start' if start else 'Here'}: {'; '.join(told)}."] if told else []
    return " ".join(sentences)


def training(results: Results) -> str:
    """Return the paired difference of entropy in the last stage, AOPD minus OPD, per start."""
    return by_start(results, "entropy_last", "Entropy over the last stage", format_nats_change, " nats")


def by_start(results: Results, figure: str, called: str, write: Callable[[float], str], unit: str = "") -> str:
    """Return the paired difference of a figure, AOPD minus OPD, from each start; empty where there is none."""
    found = []
    for start in results.starts:
        change = results.paired(results.own(start, AOPD), results.own(start, OPD), figure)
        if change.seeds:
            where = f" from the {start} start" if start else ""
            found.append(f"{format_interval(change, write)}{unit}{where} ({format_count(change.seeds, 'seed')})")
    return f"{called}, AOPD minus OPD: {'; '.join(found)}." if found else ""


def threshold(results: Results) -> str:
    """Return where learning is highest and forgetting lowest among AOPD's thresholds, and by how much against OPD."""
    ends = [
        _extreme(results, "learning_accuracy", "Learning is highest", "%", max),
        _extreme(results, "forgetting_chaudhry", "forgetting is lowest", "points", min),
    ]
    known = [end for end in ends if end]
    seeds = max(results.mean(config, "learning_accuracy").seeds for config in results.thresholds.values())
    caution = "One seed: no difference is established." if seeds < 2 else "Both are chosen on the same seeds."
    return f"{caution} {'; '.join(known)}." if known else ""


def _extreme(results: Results, figure: str, called: str, unit: str, best: Callable[..., float]) -> str:
    """Write the threshold where a figure is extreme, with paired differences; empty where no threshold has the figure."""
    means = {tau: results.mean(config, figure) for tau, config in results.thresholds.items()}
    known = {tau: mean for tau, mean in means.items() if mean.seeds}
    if not known:
        return ""
    tau = best(known, key=lambda each: known[each].mean)
    against = _against(results, results.thresholds[tau], figure)
    return f"{called} at τ = {f'{tau:g}'.replace('-', '−')}, {format_interval(known[tau])} {unit}{against}"


def _against(results: Results, config: Config, figure: str) -> str:
    """Write the paired differences from OPD and AOPD as in the suite, where these have seeds in common."""
    changes = {method: results.paired(config, Config(results.plan.base.name, method), figure) for method in (OPD, AOPD)}
    known = [
        f"{format_interval(change, format_points)} against {method}"
        for method, change in changes.items()
        if change.seeds
    ]
    return f" (paired, in points: {', '.join(known)})" if known else ""


def _at_best_rate(results: Results, start: str, method: str) -> str:
    """Write one method's figures at the learning rate with the highest mean learning accuracy; empty without runs."""
    rates = results.rates(start, method)
    means = {
        rate: mean.mean for rate, config in rates.items() if (mean := results.mean(config, "learning_accuracy")).seeds
    }
    if not means:
        return ""
    rate = max(means, key=lambda each: means[each])
    learned, lost = (results.mean(rates[rate], name) for name in ("learning_accuracy", "forgetting_chaudhry"))
    forgot = f", forgot {format_interval(lost, format_points)} points" if lost.seeds else ""
    return f"{method} {_chosen(rate, list(means))} learned {format_interval(learned)} %{forgot}"


def _chosen(rate: float, tried: list[float]) -> str:
    if len(tried) == 1:
        return f"(one lr, {rate:g})"
    return f"(lr {rate:g}{edge(rate, tried)}, where it learned most of {len(tried)})"


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else "no"


def _commands(manifests: Sequence[Manifest]) -> str:
    sessions = chain.from_iterable(m.sessions for m in manifests)
    return ", ".join(f"`{command}`" for command in dict.fromkeys(s.command or "unknown" for s in sessions))


def _code(manifests: Sequence[Manifest]) -> str:
    """Say which commits the runs come from, and whether files differed from them."""
    commits = dict.fromkeys((session.git.commit or "unknown")[:12] for m in manifests for session in m.sessions)
    dirty = sum(any(session.git.dirty for session in m.sessions) for m in manifests)
    where = f"Commit {next(iter(commits))}" if len(commits) == 1 else f"The runs differ in commit: {', '.join(commits)}"
    changed = (
        f"{dirty} of {format_count(len(manifests), 'run')} were made with uncommitted changes"
        if dirty
        else "no local changes"
    )
    return f"{where}; {changed}."
