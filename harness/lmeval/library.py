"""Find tasks by name and load them through lm-eval."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from harness.errors import TaskError
from harness.lmeval.failures import loading_failed
from harness.lmeval.records import check_records
from harness.lmeval.task import Task, Text
from harness.lmeval.task_files import TASK_FOLDER, check_files, check_mapping, lacks_members, members


class TaskLibrary:
    """The tasks that a suite can name: the shipped ones, those in `include` folders, and lm-eval's own.

    `data` holds the paths of local records, by name. Every file of these folders is parsed first, because lm-eval silently
    skips a broken one; raises `TaskError` for it.
    """

    def __init__(self, include: Sequence[str | Path] = (), data: Mapping[str, str] | None = None) -> None:
        self.folders = [TASK_FOLDER, *(Path(folder) for folder in include)]
        self.metadata: dict[str, Any] = {"data": dict(data or {})}
        self._loaded: dict[str, Task] = {}
        self._texts: dict[str, list[Text]] = {}
        check_files(self.folders)

    def names(self) -> list[str]:
        """Return the names of the tasks in our folders, sorted."""
        return list(self.manager.all_subtasks)

    def load(self, name: str) -> Task:
        """Load one task with its data; raises `TaskError` for an unknown name, a group, and data that cannot be read."""
        if self.is_group(name):
            raise TaskError(
                f"{name} is a group of {len(self.members(name))} tasks; a stage and a warm-up take single tasks, so name "
                "one of them (a probe can be a group)"
            )
        self._loaded[name] = _checked(name, self._load(name)["tasks"][name])
        return self._loaded[name]

    def loaded(self, name: str) -> Task:
        """Return a task that was loaded already, else load it."""
        return self._loaded.get(name) or self.load(name)

    def training_texts(self, name: str) -> list[Text]:
        """Return the (question, answer) pairs of a task's training documents; they are read once."""
        if name not in self._texts:
            self._texts[name] = self.loaded(name).training_texts()
        return self._texts[name]

    def load_group(self, name: str) -> tuple[list[Task], Group | None]:
        """Load the tasks of a group, with the group's settings, and the group; for a tag, None in place of the group."""
        loaded = self._load(name)
        tasks = [_checked(member, task) for member, task in loaded["tasks"].items()]
        return tasks, loaded.get("groups", {}).get(name)

    def is_group(self, name: str) -> bool:
        """Return whether a name is a group or a tag, which stand for several tasks; raises `TaskError` for an unknown name."""
        return self._manager_of(name).task_index[name].kind in (Kind.GROUP, Kind.TAG)

    def members(self, name: str) -> list[str]:
        """Return the names of the tasks that a task, group or tag stands for; reads no data."""
        return [member for member, _ in members(self._manager_of(name).task_index, name)]

    @cached_property
    def manager(self) -> TaskManager:
        """lm-eval's index of our folders, without lm-eval's own tasks, which take seconds to index."""
        return TaskManager(include_path=list(self.folders), include_defaults=False, metadata=self.metadata)

    @cached_property
    def _with_defaults(self) -> TaskManager:
        return TaskManager(include_path=list(self.folders), metadata=self.metadata)

    def _manager_of(self, name: str) -> TaskManager:
        # A group in our folders may name tasks of lm-eval.
        if name in self.manager.task_index and not lacks_members(self.manager.task_index, name):
            return self.manager
        if name in self._with_defaults.task_index:
            return self._with_defaults
        near = difflib.get_close_matches(name, self._with_defaults.all_tasks, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else f"known tasks are {', '.join(self.names())}"
        folders = ", ".join(str(folder) for folder in self.folders)
        raise TaskError(
            f"there is no task {name!r} in {folders} or in lm-eval; {hint}; --include-path names a folder of your own"
        )

    def _load(self, name: str) -> Any:
        manager = self._manager_of(name)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        for member, content in members(manager.task_index, name):
            if member.partition("::")[0] in self.manager.task_index:  # lm-eval's own files are not checked
                check_mapping(member, content)
        try:
            return manager.load([name])
        except TaskError:
            raise
        except ModuleNotFoundError as error:
            raise TaskError(
                f"task {name}: it needs the Python package {error.name!r}, which is not installed here; install it, or "
                "lm-eval's extra for this task"
            ) from error
        except Exception as error:
            contents = [content for _, content in members(manager.task_index, name)]
            raise loading_failed(name, contents, error) from error


def _checked(name: str, loaded: Any) -> Task:
    if not isinstance(loaded, ConfigurableTask):
        raise TaskError(
            f"task {name} is a {type(loaded).__name__}, expected a task that is written in YAML; name another one"
        )
    if loaded.config.unsafe_code:
        raise TaskError(
            f"task {name} says `unsafe_code: true`: its grader runs code that a model wrote, which this harness never does; "
            "evaluate it with bare lm_eval and --confirm_run_unsafe_code, on the checkpoints of a run"
        )
    task = Task(name, loaded)
    check_records(task)
    return task
