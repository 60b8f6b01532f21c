"""The contract that trainer adapters implement, and their registry.

An adapter is a frozen pydantic model (its options) with `train_stage`. Third parties register theirs under the entry
point group `harness.adapters`; nothing here imports one by name.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from pydantic import ValidationError

from harness.chat import Renderer
from harness.config import AdapterEntry, Strict, Suite, Training
from harness.engines.base import Engine
from harness.errors import ConfigError
from harness.lmeval.tasks import BenchTask
from harness.logprobs import StudentForward
from harness.rollouts import Example, Rollout
from harness.suites import explain
from harness.teachers.base import Needs, Teacher

GROUP = "harness.adapters"


@dataclass(frozen=True)
class StageContext:
    """Everything an adapter may use in one stage.

    `reference` scores as the student did at the stage's start; like `teacher_engine`, which generates with the teacher, it
    is there for adapters that ask for it. `tasks` are those that the stage trains, by name, `examples` their training items in order; `seed` belongs to this
    run and stage alone; `log` takes one mapping per training step and writes it to the step log.
    """

    student: StudentForward
    teacher: Teacher | None
    reference: Teacher | None
    engine: Engine
    teacher_engine: Engine | None
    renderer: Renderer
    tasks: Mapping[str, BenchTask]
    examples: list[Example]
    training: Training
    seed: int
    device: str
    log: Callable[[dict[str, Any]], None]

    def reward(self, rollout: Rollout) -> float:
        """Return a response's grade, 0..1, by its task's primary metric; the evaluation's own grader gives it."""
        task = self.tasks[rollout.example.task]
        return task.grade(rollout.example.doc, self.renderer.decode(rollout.response))[task.metric]


@dataclass(frozen=True)
class StageResult:
    """What a stage did: the number of training steps taken."""

    steps: int


class Adapter(Strict, ABC):
    """A training method: its fields are its options, its `train_stage` changes the student's weights in place."""

    teacher_needs: ClassVar[Needs] = "none"
    needs_reference: ClassVar[bool] = False

    @abstractmethod
    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train `ctx.student` on one stage within `ctx.training`."""


def registered() -> dict[str, EntryPoint]:
    """Return all registered adapters by name, third parties' included."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def make_adapter(name: str, entry: AdapterEntry) -> Adapter:
    """Build the adapter that a suite's entry describes.

    Raises `ConfigError` for a name that is not registered and for options that the adapter does not have.
    """
    kind = entry.adapter or name
    known = registered()
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"adapters.{name}: there is no adapter {kind!r}; {hint}registered are {', '.join(known)}")
    cls = known[kind].load()
    try:
        return cls.model_validate(entry.options)
    except ValidationError as error:
        raise ConfigError(f"adapters.{name}.options.{explain(error, cls)}") from error


def check_adapters(suite: Suite) -> dict[str, Adapter]:
    """Build every adapter of a suite and refuse those whose teacher the suite does not give."""
    adapters = {name: make_adapter(name, entry) for name, entry in suite.adapters.items()}
    trained = [name for name, entry in suite.adapters.items() if (entry.adapter or name) != "none"]
    if trained and suite.student.dtype != "float32":
        raise ConfigError(
            f"student.dtype is {suite.student.dtype}; optimiser steps round to nothing in it, so take float32 and set "
            "training.autocast: bfloat16"
        )
    for name, adapter in adapters.items():
        lacking = [s.task for s in suite.stages if suite.teacher is None and s.teacher is None]
        if adapter.teacher_needs != "none" and lacking:
            raise ConfigError(
                f"adapters.{name}: needs a teacher ({adapter.teacher_needs}), but stages {', '.join(lacking)} have none; "
                "name one under `teacher`"
            )
    return adapters
