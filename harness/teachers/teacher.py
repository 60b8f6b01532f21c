"""The contract of a teacher: it returns log-probabilities of the student's exact token ids.

To add a teacher, write one file with two classes and register the first one under the entry point group `harness.teachers`:

- a `TeacherKind`: its fields are the suite's keys under `teacher`, and its `open` returns the second class;
- an `OpenTeacher`: `score`, `identity` and `close`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from harness.config.teacher_settings import Needs, TeacherSettings, TeacherSpec
from harness.errors import ConfigError
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch


class Teacher(Protocol):
    """Scores response tokens; raises an error instead of returning a score that it did not compute."""

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """Return log-probabilities of the batch's N targets, in nats, and what else `request` names at each position.

        `temperature` divides the logits.
        """
        ...


class OpenTeacher(ABC):
    """A teacher that is ready to score; a run keeps it from one stage to the next."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A digest or revision that identifies its weights, for the manifest."""

    @abstractmethod
    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`."""

    @property
    def computes_in(self) -> str:
        """The dtype in which it computes without autocast; empty where it is not known."""
        return ""

    @property
    def follows_autocast(self) -> bool:
        """Whether it computes under the autocast of its caller, as a model of this process does."""
        return True

    @property
    def scores_exact_ids(self) -> bool:
        """Whether it scores a response's own tokens for less than with its most probable token at each position."""
        return False

    @property
    def probe_scores(self) -> tuple[float, ...]:
        """Its scores of a fixed text, which tell its precision where the caller does not set it; else empty."""
        return ()

    def close(self) -> None:  # noqa: B027 - most teachers have nothing to close
        """Release processes, connections and memory."""


def _open_nothing(*_: object) -> OpenTeacher:
    raise ConfigError("this teacher needs another one behind it, which only a run can open; use it in a run")


@dataclass(frozen=True)
class TeacherSite:
    """Where a teacher works: the device of the run, and the run's folder for its files.

    `open_teacher` opens another teacher for a student, for kinds with a teacher behind them.
    """

    device: str
    folder: Path
    open_teacher: Callable[[TeacherSpec, Loaded], OpenTeacher] = field(default=_open_nothing, compare=False)


class TeacherKind(TeacherSettings, ABC):
    """A registered kind of teacher; its fields are its settings in the suite.

    - `provides`: what it can return. A teacher that provides `generate` also implements `harness.engines.engine.Engine`.
    - `gives_entropy`: whether it can return the entropy of its whole distribution.
    """

    provides: ClassVar[frozenset[Needs]] = frozenset({"sampled"})
    gives_entropy: ClassVar[bool] = True

    def refuse(self, request: TeacherRequest, temperature: float) -> None:
        """Raise `ConfigError` for a request that it cannot serve; a dry run calls this too, so it must not use the network."""

    def check(self) -> None:
        """Raise a `HarnessError`, such as `ConfigError`, if it is not available; called before a run does anything."""

    def with_servers(self, served: Callable[[Any], Any]) -> Self:
        """Return the teacher with each `Server` that the harness must start replaced by what `served` returns for it."""
        return self

    def behind(self, task: str) -> tuple[TeacherSpec, ...]:
        """Return the teachers that score a task's responses for it."""
        return ()

    def scores_task(self, task: str) -> bool:
        """Return whether it scores a task's responses; teachers behind it are asked by themselves."""
        return True

    @property
    def context(self) -> int | None:
        """The longest sequence that it scores, in tokens; None if it is not known before the teacher is opened."""
        return None

    @abstractmethod
    def open(self, student: Loaded, site: TeacherSite) -> OpenTeacher:
        """Return the teacher for this student; raises `ModelError` if their vocabularies differ."""


def with_diagnostics(request: TeacherRequest, teacher: Teacher) -> TeacherRequest:
    """Return what a step asks a teacher for: also its most probable token, for the diagnostics, where that costs no more."""
    if isinstance(teacher, OpenTeacher) and teacher.scores_exact_ids:
        return request
    return replace(request, top_k=max(1, request.top_k))


def refuse_behind(kind: TeacherKind, request: TeacherRequest, temperature: float) -> None:
    """Raise `ConfigError` for a request that a teacher behind another one cannot serve."""
    if request.entropy and not kind.gives_entropy:
        raise ConfigError(
            f"the adapter needs the teacher's entropy, which a teacher of kind {kind.kind!r} cannot give; name a model in its "
            "place (kind: pretrained), or use another adapter"
        )
    kind.refuse(request, temperature)
