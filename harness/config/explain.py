"""Turn pydantic's validation errors into one sentence: the key, what was found, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.config import backend_settings, teacher_settings
from harness.config.models import Pretrained, Scratch
from harness.config.plugins import entry_points_of
from harness.config.teacher_settings import TeacherSettings

MODELS = ("student", "teacher")
KINDS: dict[str, type[BaseModel]] = {"scratch": Scratch, "pretrained": Pretrained}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a validation error's first finding as a sentence: key, what was found, what was expected, how many more."""
    findings = _independent(error.errors())
    first = findings[0]
    location = _without_kinds(first["loc"])
    key = ".".join(location) or "the file"
    more = f" ({len(findings) - 1} more to fix after this)" if len(findings) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, [str(part) for part in first["loc"][:-1]])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{key}: unknown key; {hint}expected one of {', '.join(sorted(known))}{more}"
    if first["type"] == "missing":
        return f"{key}: missing; this key is required{more}"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: found {first['input']!r}; expected keys and values below it, or {{}} for the defaults{more}"
    message = first["msg"].removeprefix("Value error, ")
    return (
        f"{key}: found {first['input']!r}; {message[:1].lower()}{message[1:]}{more}" if location else f"{message}{more}"
    )


def _without_kinds(place: Sequence[int | str]) -> list[str]:
    """Return a finding's location as keys of the file: pydantic adds a union's kind after `student` or `teacher`."""
    kinds = {*KINDS, *entry_points_of(teacher_settings.GROUP)}
    return [str(part) for at, part in enumerate(place) if not (at and place[at - 1] in MODELS and part in kinds)]


def _independent(findings: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out findings that follow from another one.

    These are errors in a stage's copy of the suite's training, and lists that are too short because items were refused.
    """
    places = {finding["loc"] for finding in findings}
    above = {place[:depth] for place in places for depth in range(len(place))}
    return [
        finding
        for finding in findings
        if not (finding["loc"][:1] == ("stages",) and finding["loc"][2:] in places)
        and not (finding["type"] == "too_short" and finding["loc"] in above)
    ]


def _keys_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Return the keys that are allowed at `location`, following nested models, and unions by their `kind`."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        if part.isdigit():
            continue
        if KINDS.get(part) in models:
            models = [KINDS[part]]
            continue
        if TeacherSettings in models and part in entry_points_of(teacher_settings.GROUP):
            models = [teacher_settings.teacher_settings_class(part)]
            continue
        if models == [model] and part not in model.model_fields and part in entry_points_of(backend_settings.GROUP):
            models = [backend_settings.backend_settings_class(part)]
            continue
        below = [
            nested for m in models if part in m.model_fields for nested in _models_in(m.model_fields[part].annotation)
        ]
        models = below or models
    return sorted({key for m in models for key in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
