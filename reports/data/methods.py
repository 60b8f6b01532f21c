"""Methods: the runs of one adapter that differ only in their seed, found at a user's paths or among a report's runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple

from harness.errors import RunError
from harness.rundir.reader import RunDir, find_runs
from harness.stats.estimates import Estimate
from harness.stats.score_matrix import Figure
from reports.data.frames import Frames, labels_of, load_frames
from reports.data.paired_cells import estimate_of
from reports.data.run_scores import RunScores, Side


class TrainingFigure(NamedTuple):
    """A figure of the step logs: the mean of `column` over all steps, or over those of the last stage."""

    name: str
    short: str
    formula: str
    unit: Literal["nats", "%"]
    column: str
    last_stage: bool = False


_OWN = "methods that train on their own answers alone"
ENTROPY = TrainingFigure("entropy", "entropy", f"mean over training steps, per token; {_OWN}", "nats", "entropy")
TRAINING = {
    figure.name: figure
    for figure in (
        ENTROPY,
        TrainingFigure(
            "entropy_last", "entropy, last stage", f"mean over the last stage's steps; {_OWN}", "nats", "entropy", True
        ),
        TrainingFigure("routed_fkl", "routed", "share of tokens that took forward KL", "%", "routed_fkl"),
        TrainingFigure(
            "truncated_share", "truncated", "share of answers cut off at the length limit", "%", "truncated_share"
        ),
    )
}


@dataclass(frozen=True)
class Method:
    """Runs of one adapter, suite, order and start that differ only in their seed, under one profile and grader."""

    name: str
    frames: Frames

    @property
    def first(self) -> RunDir:
        """The first run, which stands for all in what they share: tasks, stages, probes."""
        return self.frames.runs[0]

    @cached_property
    def by_seed(self) -> dict[int, RunScores]:
        """The evaluations of each seed's run."""
        shown = (self.frames.profile, self.frames.grader)
        return {run.seed: RunScores(run, self.name, *shown) for run in self.frames.runs}

    @property
    def control(self) -> bool:
        """Whether this is a control that trains nothing."""
        return self.first.manifest.control

    @property
    def tasks(self) -> list[str]:
        """The evaluated tasks, in order."""
        return self.first.tasks_under(self.frames.profile)

    @property
    def stage_of(self) -> dict[str, int]:
        """The stage that trains each trained task."""
        stages = enumerate(self.first.trains, start=1)
        return {task: stage for stage, trained in stages for task in trained if task in self.tasks}

    @property
    def branch_stage(self) -> int | None:
        """The first stage that the method trains, where it begins at a checkpoint that another stage trained; else None."""
        manifest = self.first.manifest
        stage = manifest.fixed_stages + 1
        return stage if manifest.trained_before and stage <= len(manifest.stages) else None

    @property
    def profile(self) -> str:
        """The name of the evaluation profile whose scores these are."""
        return self.frames.profile or self.first.manifest.profile_names[0]

    def under(self, profile: str) -> Method | None:
        """Return the same runs under a profile (empty: the present one); None where a run has no such profile."""
        if profile in ("", self.profile):
            return self
        first, further = self.first.manifest.profile_names[0], [run.further_profiles for run in self.frames.runs]
        if profile == first:
            return replace(self, frames=replace(self.frames, profile=""))
        if not all(profile in names for names in further):
            return None
        return replace(self, frames=replace(self.frames, profile=profile))

    @property
    def finished(self) -> Method | None:
        """The runs that are finished; None where none is."""
        runs = tuple(run for run in self.frames.runs if run.manifest.finished)
        return replace(self, frames=replace(self.frames, runs=runs)) if runs else None

    @property
    def on_policy(self) -> bool:
        """Whether it trains on the student's own answers alone, so that the entropy in its step log is theirs."""
        return self.first.manifest.on_policy

    def training(self, figure: TrainingFigure, last: int) -> dict[int, float]:
        """Return a training figure by seed over the steps up to a stage that is trained and evaluated."""
        steps, tasks = self.frames.own_steps, [task for task, own in self.stage_of.items() if own == last]
        done = [seed for seed, found in self.by_seed.items() if all(found.cell(task, last).results for task in tasks)]
        first = last if figure.last_stage else 1
        steps = steps[steps["stage"].between(first, last) & steps["seed"].isin(done)]
        return {int(str(seed)): value for seed, value in steps.groupby("seed")[figure.column].mean().dropna().items()}

    def estimate(self, figure: Figure | TrainingFigure, task: str = "", stage: int | None = None) -> Estimate:
        """Return a figure by seed, of one task where named, as if `stage` were the last; seeds without it are left out."""
        if isinstance(figure, TrainingFigure):
            return Estimate(self.training(figure, self._last(stage)) if self.on_policy else {})
        return estimate_of(self.sides(figure, task, stage))

    def sides(self, figure: Figure, task: str = "", stage: int | None = None) -> dict[int, Side]:
        """Return a figure's terms of each seed's run, as if `stage` were the last."""
        last = self._last(stage)
        return {seed: found.side(figure, last, task) for seed, found in self.by_seed.items()}

    def _last(self, stage: int | None) -> int:
        stages = len(self.first.stages)
        return stages if stage is None else min(stage, stages)


def find_methods(
    paths: Sequence[Path], *, order: str | None = None, profile: str = "", grader: str = "", least: int = 2
) -> list[Method]:
    """Return the methods at each path, in the order given; those of one folder are in display order.

    Raises `RunError` for fewer than `least`, several orders with none chosen, and a profile or grader that no run has.
    """
    found = [(path, group) for path in paths for group in _groups(path, order)]
    if len(found) < least:
        raise RunError(
            f"{', '.join(map(str, paths))} holds one method, {found[0][1][0].adapter}; name at least {least} methods, runs "
            "or folders, the baseline first"
        )
    names = _names(found)
    return [Method(name, _shown(group, profile, grader)) for name, (_, group) in zip(names, found, strict=True)]


def methods_of(frames: Frames) -> list[Method]:
    """Return the methods of a report's runs, named by their labels, in display order."""
    by_label: dict[str, list[RunDir]] = {}
    for run, label in frames.labelled:
        by_label.setdefault(label, []).append(run)
    return [Method(label, replace(frames, runs=tuple(runs))) for label, runs in by_label.items()]


def tasks_of_all(methods: Iterable[Method]) -> list[str]:
    """Return the tasks that all methods evaluate, each under its own profile: a further profile has none by likelihood."""
    first, *others = methods
    return [task for task in first.tasks if all(task in other.tasks for other in others)]


def over_tasks(figure: Figure, tasks: Sequence[str]) -> Figure:
    """Return a figure that averages only those of its tasks that are among `tasks`."""
    return replace(figure, over=lambda matrix: [task for task in figure.over(matrix) if task in tasks])


def different_starts(one: Method, other: Method, stage: int = 1) -> list[int]:
    """Return the shared seeds at which `stage` begins with different weights.

    Runs that did not record their weights count as equal.
    """
    before = "start" if stage == 1 else f"stage_{stage - 1}"
    weights = [{run.seed: run.manifest.weights.get(before) for run in each.frames.runs} for each in (one, other)]
    return [s for s in weights[0] if s in weights[1] and len({weights[0][s], weights[1][s]} - {None, ""}) > 1]


def by_setting(methods: Sequence[Method]) -> dict[tuple[str, str], list[Method]]:
    """Group methods by suite and order: within a group, an adapter's name and its start identify a method."""
    settings: dict[tuple[str, str], list[Method]] = {}
    for method in methods:
        settings.setdefault((method.first.suite, method.first.order), []).append(method)
    return settings


def by_start(methods: Iterable[Method]) -> dict[tuple[str, str, str], list[Method]]:
    """Group methods by suite, order and start: those of one group are compared with each other."""
    starts: dict[tuple[str, str, str], list[Method]] = {}
    for method in methods:
        starts.setdefault((method.first.suite, method.first.order, method.first.start), []).append(method)
    return starts


def _groups(path: Path, order: str | None) -> list[list[RunDir]]:
    runs = find_runs([path])
    orders = list(dict.fromkeys(run.order for run in runs))
    kept = [run for run in runs if order in (None, run.order)]
    if not kept:
        raise RunError(f"{path} has no run in order {order!r}; it has {', '.join(orders)}")
    groups: dict[tuple[str, ...], list[RunDir]] = {}
    for run in kept:
        groups.setdefault((run.suite, run.adapter, run.order, run.start), []).append(run)
    if len(orders) > 1 and order is None:
        raise RunError(
            f"{path} has runs in the orders {', '.join(orders)}; choose one with --order, or name its folder"
        )
    return list(groups.values())


def _names(found: Sequence[tuple[Path, Sequence[RunDir]]]) -> list[str]:
    """Name methods by their adapter; where names repeat, add what else differs, then the seed, then the path."""
    firsts = [group[0] for _, group in found]
    names = [run.adapter for run in firsts]
    if len(set(names)) < len(names):
        names = labels_of(firsts)
    if len(set(names)) < len(names) and all(len(group) == 1 for _, group in found):
        names = [f"{name}, seed {run.seed}" for name, run in zip(names, firsts, strict=True)]
    if len(set(names)) < len(names):
        names = [
            f"{name} at {place}"
            for name, place in zip(names, _what_sets_apart([path for path, _ in found]), strict=True)
        ]
    if repeated := [path for (path, _), name in zip(found, names, strict=True) if names.count(name) > 1]:
        raise RunError(f"{repeated[0]} is named twice; name each method once")
    return names


def _what_sets_apart(paths: Sequence[Path]) -> list[str]:
    """Return each path without the parts that all paths begin with and end with."""
    parts = [path.resolve().parts for path in paths]
    left = [each[_alike(parts) :] for each in parts]
    after = _alike([each[::-1] for each in left])
    return ["/".join(each[: len(each) - after]) or str(path) for each, path in zip(left, paths, strict=True)]


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """Return how many leading parts are the same in all."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False)))


def _shown(group: Sequence[RunDir], profile: str, grader: str) -> Frames:
    frames = load_frames([run.path for run in group], grader)
    own, *further = [list(run.manifest.profile_names) for run in frames.runs]
    if profile in ("", own[0]):
        return frames
    if any(profile not in names for names in (own, *further)):
        raise RunError(f"{frames.runs[0].path} has no profile {profile!r}; it has {', '.join(own)}")
    return replace(frames.under(profile), grader=grader)
