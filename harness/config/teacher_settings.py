"""What a suite says about a teacher: a model in this process, or a teacher of a registered kind.

`teacher: {kind: NAME, ...}` is read by the class that the entry point group `harness.teachers` maps NAME to; its fields are
the other keys. `pretrained` and `scratch` are models in this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, PlainValidator, SerializeAsAny, Tag, TypeAdapter

from harness.config.base import Strict
from harness.config.models import Model, Pretrained, Scratch
from harness.config.plugins import entry_points_of, load_plugin

GROUP = "harness.teachers"
MODELS = ("pretrained", "scratch")


Needs = Literal["none", "sampled", "top_k", "full", "generate"]  # what a method needs from a teacher


class TeacherSettings(Strict):
    """What the configuration needs to know about a registered teacher: `kind`, the name that it is registered under."""

    kind: str


def teacher_settings_class(kind: str) -> type[TeacherSettings]:
    """Return the class of a registered kind; raises `ConfigError` where it cannot be loaded."""
    return load_plugin(GROUP, kind, "teacher.kind", TeacherSettings)


def read_teacher(raw: Any) -> Pretrained | Scratch | TeacherSettings:
    """Validate a suite's `teacher`; the locations of its errors include the kind, like those of a model."""
    if isinstance(raw, Pretrained | Scratch | TeacherSettings):
        return raw
    kind = cast(Mapping[str, Any], raw).get("kind") if isinstance(raw, Mapping) else None
    kinds = entry_points_of(GROUP)
    if not isinstance(kind, str) or kind in MODELS or not kinds:
        return TypeAdapter[Any](Model).validate_python(raw)
    if kind not in kinds:
        raise ValueError(f"kind: expected one of {', '.join([*MODELS, *kinds])}")
    own: Any = teacher_settings_class(kind)
    tagged: Any = Annotated[
        Annotated[own, Tag(kind)] | Annotated[Scratch, Tag("scratch")], Discriminator(lambda _: kind)
    ]
    return TypeAdapter[Any](tagged).validate_python(raw)


TeacherSpec = Annotated[Pretrained | Scratch | SerializeAsAny[TeacherSettings], PlainValidator(read_teacher)]
