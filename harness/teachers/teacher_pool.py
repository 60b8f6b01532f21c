"""The teacher of a run: opened when a stage first needs it, and kept while stages use the same one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.config.models import Model, Pretrained, Scratch
from harness.config.teacher_settings import Needs, TeacherSettings
from harness.errors import ConfigError
from harness.lm.checkpoints import Loaded, context_of
from harness.lm.logprobs import TeacherRequest
from harness.teachers.local import open_local
from harness.teachers.teacher import OpenTeacher, TeacherKind, TeacherSite

Spec = Pretrained | Scratch | TeacherSettings


class TeacherPool:
    """Opens teachers, at most one at a time; `checkpoint_of` returns the folder of a model in this process."""

    def __init__(self, device: str, folder: Path, checkpoint_of: Callable[[Model], Path]) -> None:
        self.site = TeacherSite(device, folder, self._open)
        self.checkpoint_of = checkpoint_of
        self.teacher: OpenTeacher | None = None
        self._spec: Spec | None = None

    def check(self, spec: Spec) -> None:
        """Raise an error for a registered teacher that is not available; see `TeacherKind.check`."""
        if not isinstance(spec, Pretrained | Scratch):
            kind_of(spec).check()

    def context_of(self, spec: Spec, task: str) -> int | None:
        """Return the longest sequence of a task that a teacher scores, in tokens; None if it is not known yet."""
        if isinstance(spec, Scratch):
            return spec.architecture.context
        if isinstance(spec, Pretrained):
            return context_of(self.checkpoint_of(spec))
        kind = kind_of(spec)
        known = [kind.context, *(self.context_of(each, task) for each in kind.behind(task))]
        return min((length for length in known if length is not None), default=None)

    def take(self, spec: Spec, student: Loaded) -> OpenTeacher:
        """Return the teacher that `spec` describes, for a student; the previous one is closed first if it differs."""
        if self.teacher is None or self._spec != spec:
            self.close()
            self.teacher = self._open(spec, student)
            self._spec = spec
        return self.teacher

    def _open(self, spec: Spec, student: Loaded) -> OpenTeacher:
        if isinstance(spec, Pretrained | Scratch):
            return open_local(spec, self.checkpoint_of(spec), student, self.site.device)
        return kind_of(spec).open(student, self.site)

    def close(self) -> None:
        """Close the teacher."""
        if self.teacher is not None:
            self.teacher.close()
            self.teacher = None


def refuse_request(spec: Spec, needs: Needs, request: TeacherRequest, temperature: float) -> None:
    """Raise `ConfigError` for a teacher that cannot return what an adapter needs; uses no network."""
    if isinstance(spec, Pretrained | Scratch):
        return
    kind = kind_of(spec)
    lacks = "its entropy" if request.entropy and not kind.gives_entropy else ""
    lacks = lacks if needs in kind.provides else repr(needs)
    if lacks:
        raise ConfigError(
            f"the adapter needs a teacher that provides {lacks}, but a teacher of kind {kind.kind!r} provides "
            f"{', '.join(sorted(kind.provides))}; use another teacher or another adapter"
        )
    kind.refuse(request, temperature)


def scores_task(spec: Spec, task: str) -> bool:
    """Return whether a teacher, and those behind it, score a task's responses."""
    if isinstance(spec, Pretrained | Scratch):
        return True
    kind = kind_of(spec)
    return kind.scores_task(task) and all(scores_task(each, task) for each in kind.behind(task))


def kind_of(spec: TeacherSettings) -> TeacherKind:
    """Return a registered teacher's settings as a `TeacherKind`; raises `ConfigError` for any other class."""
    if not isinstance(spec, TeacherKind):
        raise ConfigError(
            f"teacher.kind: {type(spec).__qualname__} is not a subclass of harness.teachers.teacher.TeacherKind"
        )
    return spec
