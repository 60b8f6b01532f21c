"""The teacher of a run: opened when a stage first needs it, and kept while the stages name the same one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.config.models import Model, Pretrained, Scratch
from harness.config.teacher import Needs, TeacherSettings
from harness.errors import ConfigError
from harness.lm.checkpoints import Loaded, context_of
from harness.teachers.base import OpenTeacher, TeacherKind, TeacherSite
from harness.teachers.local import open_local

Spec = Pretrained | Scratch | TeacherSettings


class TeacherPool:
    """Holds at most one teacher at a time."""

    def __init__(self, device: str, folder: Path, checkpoint_of: Callable[[Model], Path]) -> None:
        self.site = TeacherSite(device, folder)
        self.checkpoint_of = checkpoint_of
        self.teacher: OpenTeacher | None = None
        self._spec: Spec | None = None

    def check(self, spec: Spec, needs: Needs) -> None:
        """Raise `ConfigError` for a teacher that cannot be had, or that cannot return what an adapter needs."""
        if isinstance(spec, Pretrained | Scratch):
            return
        kind = _kind(spec)
        if needs not in kind.provides:
            raise ConfigError(
                f"the adapter needs a teacher that provides {needs!r}, but a teacher of kind {kind.kind!r} provides "
                f"{', '.join(sorted(kind.provides))}; use another teacher or another adapter"
            )
        kind.check()

    def context_of(self, spec: Spec) -> int | None:
        """Return the longest sequence that a teacher reads, in tokens; None where that is not known before it is opened."""
        if isinstance(spec, Scratch):
            return spec.architecture.context
        if isinstance(spec, Pretrained):
            return context_of(self.checkpoint_of(spec))
        return _kind(spec).context

    def take(self, spec: Spec, student: Loaded) -> OpenTeacher:
        """Return the teacher that `spec` describes for a student; a different one is closed before it is opened."""
        if self.teacher is None or self._spec != spec:
            self.close()
            if isinstance(spec, Pretrained | Scratch):
                self.teacher = open_local(spec, self.checkpoint_of(spec), student, self.site.device)
            else:
                self.teacher = _kind(spec).open(student, self.site)
            self._spec = spec
        return self.teacher

    def close(self) -> None:
        """Close the teacher."""
        if self.teacher is not None:
            self.teacher.close()
            self.teacher = None


def _kind(spec: TeacherSettings) -> TeacherKind:
    if not isinstance(spec, TeacherKind):
        raise ConfigError(
            f"teacher.kind: {type(spec).__qualname__} is not a subclass of harness.teachers.base.TeacherKind"
        )
    return spec
