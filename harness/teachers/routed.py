"""Several teachers, each for some tasks: `teacher: {kind: routed, by_task: {TASK: {...}, ...}, otherwise: {...}}`.

It is for a stage that trains several tasks together; stages with one task can each name their own teacher.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field

from harness.config.base import digest
from harness.config.models import Pretrained, Scratch
from harness.config.teacher_identity import full_identity, weights_part
from harness.config.teacher_settings import TeacherSpec
from harness.errors import ConfigError
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch
from harness.teachers.sub_batches import part_of, put_together
from harness.teachers.teacher import Needs, OpenTeacher, TeacherKind, TeacherSite, refuse_behind


class Routed(TeacherKind):
    """The teacher of each task."""

    provides: ClassVar[frozenset[Needs]] = frozenset({"sampled", "top_k"})

    by_task: dict[str, TeacherSpec] = Field(min_length=1, description="a teacher for each task")
    otherwise: TeacherSpec | None = Field(default=None, description="for tasks that `by_task` does not name")

    def behind(self, task: str) -> tuple[TeacherSpec, ...]:
        """Return the teacher of a task."""
        found = self.by_task.get(task, self.otherwise)
        return () if found is None else (found,)

    def scores_task(self, task: str) -> bool:
        """Return whether a task has a teacher."""
        return bool(self.behind(task))

    @property
    def _kinds(self) -> list[TeacherKind]:
        every = [*self.by_task.values(), self.otherwise]
        return [spec for spec in every if isinstance(spec, TeacherKind)]

    def refuse(self, request: TeacherRequest, temperature: float) -> None:
        """Raise `ConfigError` for a request that one of the teachers cannot serve."""
        for kind in self._kinds:
            refuse_behind(kind, request, temperature)

    def check(self) -> None:
        """Raise an error if one of the teachers is not available; see `TeacherKind`."""
        for kind in self._kinds:
            kind.check()

    def with_servers(self, served: Callable[[Any], Any]) -> Routed:
        """Return the teachers with their servers started; see `TeacherKind`."""

        def started(spec: TeacherSpec | None) -> TeacherSpec | None:
            return spec.with_servers(served) if isinstance(spec, TeacherKind) else spec

        by_task = {task: started(spec) for task, spec in self.by_task.items()}
        return self.model_copy(update={"by_task": by_task, "otherwise": started(self.otherwise)})

    def open(self, student: Loaded, site: TeacherSite) -> RoutedTeacher:
        """Open every teacher; equal ones are opened once."""
        opened: list[tuple[Pretrained | Scratch | object, OpenTeacher]] = []

        def teacher_of(spec: TeacherSpec) -> OpenTeacher:
            for known, teacher in opened:
                if known == spec:
                    return teacher
            opened.append((spec, site.open_teacher(spec, student)))
            return opened[-1][1]

        by_task = {task: teacher_of(spec) for task, spec in self.by_task.items()}
        return RoutedTeacher(by_task, None if self.otherwise is None else teacher_of(self.otherwise))


class RoutedTeacher(OpenTeacher):
    """Scores each task's responses with that task's teacher."""

    def __init__(self, by_task: dict[str, OpenTeacher], otherwise: OpenTeacher | None) -> None:
        self.by_task, self.otherwise = by_task, otherwise

    @property
    def identity(self) -> str:
        """A digest of the teachers' weights by task, and one of their whole identities where these say more."""
        weights, whole = self._digest_of(weights_part), self._digest_of(str)
        return weights if weights == whole else full_identity(weights, whole)

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`; raises `ConfigError` for a task without a teacher."""
        rows: dict[int, list[int]] = defaultdict(list)
        teachers: dict[int, OpenTeacher] = {}
        for row, rollout in enumerate(batch.rollouts):
            teacher = self._teacher_of(rollout.example.task)
            teachers[id(teacher)] = teacher
            rows[id(teacher)].append(row)
        parts = [
            (places, teachers[key].score(part_of(batch, places), request, temperature)) for key, places in rows.items()
        ]
        return put_together(batch, request, parts)

    @property
    def computes_in(self) -> str:
        """The dtype of the teachers that compute in this process; `mixed` where they have several."""
        found = {teacher.computes_in for teacher in self._every} - {""}
        return "mixed" if len(found) > 1 else next(iter(found), "")

    @property
    def follows_autocast(self) -> bool:
        """Whether one of the teachers does."""
        return any(teacher.follows_autocast for teacher in self._every)

    @property
    def scores_exact_ids(self) -> bool:
        """Whether all of the teachers do."""
        return all(teacher.scores_exact_ids for teacher in self._every)

    @property
    def probe_scores(self) -> tuple[float, ...]:
        """The probe scores of all teachers."""
        return tuple(score for teacher in self._every for score in teacher.probe_scores)

    @property
    def _every(self) -> list[OpenTeacher]:
        """Each teacher once, in the order of the suite."""
        every = [*self.by_task.values(), *([self.otherwise] if self.otherwise else [])]
        return list({id(each): each for each in every}.values())

    def _digest_of(self, part: Callable[[str], str]) -> str:
        """Return a digest of a part of the teachers' identities by task."""
        known = {task: part(teacher.identity) for task, teacher in self.by_task.items()}
        return digest([known, part(self.otherwise.identity) if self.otherwise else ""])

    def close(self) -> None:
        """Close every teacher."""
        for teacher in self._every:
            teacher.close()

    def _teacher_of(self, task: str) -> OpenTeacher:
        teacher = self.by_task.get(task, self.otherwise)
        if teacher is None:
            raise ConfigError(
                f"teacher.by_task names no teacher for task {task}; add one, or name one for all other tasks under "
                "teacher.otherwise"
            )
        return teacher
