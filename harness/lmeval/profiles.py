"""Evaluation profiles on loaded tasks: each task once for every profile, with generation settings of its own.

A profile changes the loaded task (`task.set_config`): lm-eval's global `gen_kwargs` would override every task alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from harness.config.evaluation import Evaluation
from harness.lmeval.checks import settle_generation
from harness.lmeval.task import Task


class InProfile(Protocol):
    """A task, or a group of them, under a profile."""

    @property
    def name(self) -> str:
        """The task's or group's name."""
        ...

    @property
    def profile(self) -> str:
        """The profile's name, empty for the suite's first one."""
        ...


def under_profiles(tasks: Iterable[Task], evaluation: Evaluation) -> dict[str, Task]:
    """Return every task under every profile by its cell's name, settings settled, the first profile's tasks first.

    A task that is scored by likelihoods draws no answers, so it stands under the first profile alone.
    Raises `TaskError` where a setting that decides answers is missing or several answers would be one.
    """
    loaded = list(tasks)
    found: dict[str, Task] = {}
    for number, (name, profile) in enumerate(evaluation.all_profiles.items()):
        for task in (task for task in loaded if task.generates or number == 0):
            settled = task.under(name if number else "", profile.pass_at if task.generates else ())
            settle_generation(settled, profile.over(evaluation.decoding), profile.n)
            found[settled.cell] = settled
    return found


def tasks_by_profile(cells: Iterable[InProfile], evaluation: Evaluation) -> dict[str, list[str]]:
    """Return the names of the tasks and groups that each profile evaluates, profiles by name, in order."""
    names = list(evaluation.all_profiles)
    found: dict[str, list[str]] = {name: [] for name in names}
    for task in cells:
        found[task.profile or names[0]].append(task.name)
    return found
