"""Load what a suite evaluates, groups of lm-eval included, and compute a group's cell from its tasks' cells.

A group whose file says how its tasks' scores are averaged (`aggregate_metric_list`) is one probe with that score; its tasks
have cells of their own. For a tag, or a group without such a list, each of its tasks is a probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from lm_eval.api.group import Group

from harness.config.base import digest
from harness.config.suite import Suite
from harness.errors import TaskError
from harness.evaluation.cell_cache import CellResult
from harness.evaluation.scoring import FIXED, outcome_of, summary_of
from harness.lmeval.generation_settings import under_profiles
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.rundir.records.cell_records import GroupRecord, Keys, Member
from harness.rundir.stage_folder import cell_name


@dataclass(frozen=True)
class TaskGroup:
    """A group with one score: its tasks, its metric, and whether items (`by_size`) or tasks have equal weights."""

    name: str
    tasks: tuple[str, ...]
    metric: str
    by_size: bool
    profile: str = ""

    @property
    def cell(self) -> str:
        """The name of this group's cells."""
        return cell_name(self.name, self.profile)

    def members(self) -> dict[str, str]:
        """Return the name of each task's cell, by task."""
        return {task: cell_name(task, self.profile) for task in self.tasks}


@dataclass(frozen=True)
class EvaluationPlan:
    """What a suite evaluates: tasks and groups under every profile, by cell name, and the names of its probes."""

    cells: dict[str, Task]
    groups: dict[str, TaskGroup]
    probes: tuple[str, ...]

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks under the suite's first profile, those of groups included."""
        return {task.name: task for task in self.cells.values() if not task.profile}

    def in_groups(self) -> set[str]:
        """Return the tasks of groups; tables show the groups instead."""
        return {task for group in self.groups.values() for task in group.tasks}

    def shown(self, profile: str) -> dict[str, str]:
        """Return what a table of one profile shows: the names of groups, and of tasks outside groups, by cell."""
        hidden = self.in_groups()
        tasks = {name: t.name for name, t in self.cells.items() if t.profile == profile and t.name not in hidden}
        return {**tasks, **{name: group.name for name, group in self.groups.items() if group.profile == profile}}


def load_evaluation_plan(library: TaskLibrary, suite: Suite) -> EvaluationPlan:
    """Load all that a suite evaluates, with data and final generation settings.

    Raises `TaskError` for a task that two names of the suite include, for a group that is a stage, and for a task that cannot
    be loaded or whose generation settings are incomplete.
    """
    trained = [name for name in suite.tasks if name not in suite.probes]
    loaded = {name: [library.load(name)] for name in trained}
    groups: dict[str, TaskGroup] = {}
    probes: list[str] = []
    for name in suite.probes:
        loaded[name], group = _load_probe(library, name)
        probes += [name] if group else [task.name for task in loaded[name]]
        groups |= {name: group} if group else {}
    _refuse_twice(loaded)
    cells = under_profiles([task for tasks in loaded.values() for task in tasks], suite.evaluation)
    return EvaluationPlan(cells, dict(_under_profiles(groups.values(), cells)), tuple(probes))


def group_cell(group: TaskGroup, cells: Mapping[str, CellResult]) -> CellResult:
    """Return a group's cell from its tasks' cells (by task), weighted as lm-eval's `aggregate_metric_list` says.

    With equal weights of items (`weight_by_size`), the cell's items are those of all tasks, as `<task>/<item>`. With equal
    weights of tasks, its items are the tasks with their scores. In both, the cell's score is the mean over its items.
    """
    parts = [_items(group, task, cells[task].samples) for task in group.tasks]
    if not group.by_size:
        parts = [_as_item(task, part) for task, part in zip(group.tasks, parts, strict=True)]
    samples = pd.concat(parts, ignore_index=True)
    summaries = [cells[task].summary for task in group.tasks]
    members = {s.task: Member(score=s.score, metric=s.metric, n=s.n) for s in summaries}
    found = {
        "seconds": round(sum(s.seconds for s in summaries), 3),
        "weights": summaries[0].weights,
        "seed": summaries[0].seed,
        "keys": _keys(group, {s.task: s.keys for s in summaries}),
        "group": GroupRecord(weight_by_size=group.by_size, tasks=members),
    }
    return CellResult(summary_of(group.name, group.metric, samples).model_copy(update=found), samples)


def _load_probe(library: TaskLibrary, name: str) -> tuple[list[Task], TaskGroup | None]:
    if not library.is_group(name):
        return [library.load(name)], None
    tasks, group = library.load_group(name)
    if group is None or not group.has_aggregation:
        return tasks, None
    tasks = [_filtered(group, task) for task in tasks]
    return tasks, _task_group(group, tasks)


def _filtered(group: Group, task: Task) -> Task:
    """Return a group's task, graded through the filter that the group's file names, if any."""
    assert group.aggregate_metric_list
    named = group.aggregate_metric_list[0].filter_list
    if not named:
        return task
    if named[0] not in task.filters:
        raise TaskError(
            f"group {group.name} averages the filter {named[0]!r}, which its task {task.name} does not have (it has "
            f"{', '.join(task.filters)}); name its tasks as probes"
        )
    return task.through(named[0])


def _task_group(group: Group, tasks: Sequence[Task]) -> TaskGroup:
    assert group.aggregate_metric_list
    first = group.aggregate_metric_list[0]
    if callable(first.aggregation):
        raise TaskError(
            f"group {group.name} combines its tasks by its own function; name its tasks as probes: "
            f"{', '.join(task.name for task in tasks)}"
        )
    for task in tasks:
        if task.metric != first.metric and not task.higher_is_better.get(first.metric):
            raise TaskError(
                f"group {group.name} averages {first.metric}, which its task {task.name} does not offer with higher "
                f"better (it offers {', '.join(task.graders)}); name its tasks as probes"
            )
    return TaskGroup(group.name, tuple(task.name for task in tasks), first.metric, first.weight_by_size)


def _under_profiles(groups: Any, cells: Mapping[str, Task]) -> Iterator[tuple[str, TaskGroup]]:
    """Yield each group under every profile that evaluates all its tasks."""
    for profile in dict.fromkeys(task.profile for task in cells.values()):
        for group in (replace(group, profile=profile) for group in groups):
            if all(cell in cells for cell in group.members().values()):
                yield group.cell, group


def _refuse_twice(loaded: Mapping[str, Sequence[Task]]) -> None:
    named: dict[str, str] = {}
    for name, tasks in loaded.items():
        for task in tasks:
            if (other := named.setdefault(task.name, name)) != name:
                raise TaskError(
                    f"task {task.name} is named twice by the suite, by {other} and by {name}; leave one out, because a "
                    "probe cannot be a task that a stage trains, and each score counts once"
                )


def _items(group: TaskGroup, task: str, samples: pd.DataFrame) -> pd.DataFrame:
    """Return a task's rows with the group's metric as their score."""
    # The likelihoods of an item say how many choices it has.
    kept = (*FIXED, "loglikelihoods") if group.by_size else FIXED
    part = samples[[name for name in kept if name in samples]].assign(task=task)
    # Cells of early versions have no clusters, so each item is one.
    part["cluster"] = task + "/" + samples.get("cluster", samples["item_id"])
    part["item_id"] = task + "/" + samples["item_id"]
    if group.metric in samples and outcome_of(group.metric, 0.0) is not None:
        part["score"] = samples[group.metric]
        part["outcome"] = [
            old if (score >= 1) == (old == "correct") else outcome_of(group.metric, score)
            for old, score in zip(samples["outcome"], part["score"], strict=True)
        ]
    return part


def _as_item(task: str, items: pd.DataFrame) -> pd.DataFrame:
    score = items.groupby("item_id", sort=False)["score"].mean().mean()
    row = {
        "item_id": task,
        "cluster": task,
        "sample": 0,
        "prompt": "",
        "target": "",
        "response": "",
        "tokens": 0,
        "score": score,
    }
    return pd.DataFrame([{**row, "finish": None, "outcome": None, "task": task}])[list(items.columns)]


def _keys(group: TaskGroup, members: Mapping[str, Keys]) -> Keys:
    generation, grading = [keys.generation for keys in members.values()], [keys.grading for keys in members.values()]
    fields = {
        "task": group.name, "metric": group.metric, "weight_by_size": group.by_size,
        "tasks": {task: keys.comparability for task, keys in members.items()},
    }  # fmt: skip
    graded = digest([grading, group.metric, group.by_size])
    return Keys(generation=digest(generation), grading=graded, comparability=digest(fields), fields=fields)
