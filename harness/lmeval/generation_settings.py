"""Resolve the generation settings of loaded tasks under every evaluation profile; all that decides answers must be stated.

A profile changes a copy of the loaded task (`Task.set_generation`), because lm-eval's global `gen_kwargs` would override the
settings of all tasks alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from harness.config.evaluation import Decoding, Evaluation
from harness.errors import TaskError
from harness.lmeval.score import can_be_score
from harness.lmeval.task import Task
from harness.lmeval.task_files import read_task_file

REQUIRED = ("until", "temperature", "max_gen_toks")
# lm-eval's names for the length limit of an answer, in its order of precedence.
BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "n"}


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
    """Return every task under every profile with final settings, by cell name, the first profile's tasks first.

    A task that is scored by likelihoods draws no answers, so only the first profile has it. Raises `TaskError` as
    `settle_generation` does.
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
    """Return the names of the tasks and groups that each profile evaluates, by profile."""
    names = list(evaluation.all_profiles)
    found: dict[str, list[str]] = {name: [] for name in names}
    for task in cells:
        found[task.profile or names[0]].append(task.name)
    return found


def settle_generation(task: Task, decoding: Decoding, n: int = 1) -> None:
    """Set a task's generation settings: its file's, overridden by `decoding`, with `n` answers of each item.

    Raises `TaskError` for a metric that cannot be the score, a missing or wrong setting, and several greedy answers. lm-eval
    would silently fill in what is missing, differently for each of its model classes.
    """
    if task.metric not in task.graders:
        raise TaskError(
            f"{task.source or task.name}: metadata.harness.metric is {task.metric!r}, expected one of metric_list: "
            f"{', '.join(task.graders)}"
        )
    fitting = can_be_score(task.higher_is_better)
    if task.metric not in fitting:
        raise TaskError(
            f"{task.source or task.name}: lower is better in {task.metric!r}, so an improvement would be shown as a loss; "
            f"name another metric in metadata.harness.metric ({', '.join(fitting) or 'none of its metrics fits'})"
        )
    if not task.generates:
        return
    changes = decoding.model_dump(exclude_none=True, mode="json")
    own = stated_generation(task)
    # A temperature of the suite asks for sampled answers, whatever the task's file says.
    if changes.get("temperature") and "do_sample" not in changes and own.get("do_sample") is False:
        changes["do_sample"] = True
    stated = {**own, **changes}
    resolved = {**_canonical(task.generation), **changes}
    if missing := [name for name in REQUIRED if name not in stated]:
        raise TaskError(
            f"{task.source or task.name}: generation_kwargs lack {', '.join(missing)}; expected until, temperature and "
            "max_gen_toks, in the task or under the suite's `evaluation.decoding`"
        )
    if n > 1 and not (stated["temperature"] and stated.get("do_sample", True)):
        raise TaskError(
            f"task {task.name}: profile {task.profile or 'of the suite'} asks for {n} answers of each item and decoding is "
            "greedy, which gives the same one each time; set the profile's temperature above 0"
        )
    _check_values(task, resolved)
    task.set_generation(resolved if n == 1 else {**resolved, "n": n})


def stated_generation(task: Task) -> dict[str, Any]:
    """Return the generation settings that the task's file states, without lm-eval's defaults."""
    stated = task.generation if task.source is None else read_task_file(task.source).get("generation_kwargs")
    return _canonical(stated or {})


def check_stated_generation(task: Task) -> None:
    """Raise `TaskError` for a generation setting of the task's file that no engine has, or whose value none can use."""
    _check_values(task, stated_generation(task))


def _canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation settings under lm-eval's final names, without `num_beams: 1` and null, which change nothing."""
    budget = next((settings[name] for name in BUDGETS if settings.get(name) is not None), None)
    rest = {
        name: value
        for name, value in settings.items()
        if name not in BUDGETS and (name, value) != ("num_beams", 1) and (value is not None or name in REQUIRED)
    }
    return rest if budget is None else {**rest, "max_gen_toks": budget}


def _check_values(task: Task, settings: Mapping[str, Any]) -> None:
    where = task.source or task.name
    if unknown := sorted(map(str, set(settings) - KNOWN)):
        raise TaskError(
            f"{where}: generation_kwargs {', '.join(unknown)} are not supported, expected some of {', '.join(sorted(KNOWN))}; "
            "write a task file that includes this one and states generation_kwargs without them"
        )
    expected: dict[str, tuple[Callable[[Any], bool], str]] = {
        "max_gen_toks": (lambda value: _is_whole(value) and value > 0, "a whole number above 0"),
        "temperature": (lambda value: _is_number(value) and value >= 0, "0 or more"),
        "until": (_are_texts, "texts, none empty"),
        "do_sample": (lambda value: isinstance(value, bool), "true or false"),
        "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and up to 1"),
        "top_k": (lambda value: _is_whole(value) and value >= -1, "a whole number; 0 and -1 take all tokens"),
        "n": (lambda value: _is_whole(value) and value > 0, "a whole number above 0"),
    }
    for name, value in settings.items():
        is_valid, description = expected[name]
        if value is None and name not in REQUIRED:
            continue
        if not is_valid(value):
            raise TaskError(f"{where}: generation_kwargs.{name} is {value!r}, expected {description}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list | tuple) and all(isinstance(text, str) and text for text in texts)
