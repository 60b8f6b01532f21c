"""The base of all configuration: immutable models, and functions that merge and hash mappings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # for names that become folders
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
# A task's name in a path; lm-eval allows more. It must not leave the folder, be hidden, or contain control characters.
PathPart = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$", max_length=200)]
FIRST_LOOK = 3  # a verdict needs three seeds


def _refuse_disorder(looks: tuple[int, ...]) -> tuple[int, ...]:
    if looks[0] < FIRST_LOOK or any(later <= earlier for earlier, later in pairwise(looks)):
        raise ValueError(
            f"{list(looks)}: expected increasing numbers of seeds from {FIRST_LOOK} on, such as [3, 5, 10]"
        )
    return looks


Looks = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_refuse_disorder)]
LOOKS_MEAN = "numbers of seeds at which claims are judged; null: once, at the number of `seeds`"


def refuse_early_end(looks: tuple[int, ...] | None, seeds: int) -> None:
    """Raise `ValueError` where the last look comes before the last seed: the later seeds would never be judged."""
    if looks and looks[-1] < seeds:
        raise ValueError(
            f"looks end at {looks[-1]} seeds and there are {seeds}; let the last look be at {seeds} or more"
        )


class Strict(BaseModel):
    """Base of all configuration: immutable.

    An unknown key, a number that is not finite, and `true` where a number is expected are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, data: Any) -> Any:
        """Turn `true` into text where a number is expected, so that the field refuses it; pydantic would read it as 1."""
        if not is_mapping(data):
            return data
        numbers = {name for name, field in cls.model_fields.items() if _takes_numbers(field.annotation)}
        return {key: _booleans_as_text(value) if key in numbers else value for key, value in data.items()}


class Record(BaseModel):
    """Base of what is written to disk: immutable; only fields that were set are written."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        ser_json_inf_nan="strings",
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    def as_json(self) -> dict[str, Any]:
        """Return the fields that were set, ready for a JSON file."""
        return self.model_dump(exclude_unset=True)


def _takes_numbers(annotation: Any) -> bool:
    """Return whether a field takes numbers, alone or in a list or mapping, and no booleans."""
    parts = set(_leaves(annotation))
    return bool(parts & {int, float}) and not parts & {bool, Any}


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the innermost types of an annotation; `Literal` stands for its values."""
    below = get_args(annotation)
    if not below or get_origin(annotation) is Literal:
        yield annotation if not below else Literal
    for part in below if get_origin(annotation) is not Literal else ():
        yield from _leaves(part)


def _booleans_as_text(value: Any) -> Any:
    """Return a value with every boolean in it as `true` or `false` in text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return [_booleans_as_text(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {key: _booleans_as_text(part) for key, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value


def is_mapping(value: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a value is a mapping read from YAML or JSON."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a value is a list read from YAML or JSON."""
    return isinstance(value, list)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` applied: mappings in both are merged, any other value is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if is_mapping(below) and is_mapping(value) else value
    return merged


def json_value(value: Any) -> Any:
    """Return a value for JSON: infinity and NaN become the strings `inf`, `-inf` and `nan`, which pydantic reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: json_value(part) for key, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [json_value(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def digest(value: Any) -> str:
    """Return a digest of a JSON-like value: 16 hexadecimal digits of SHA-256, independent of key order."""
    text = json.dumps(json_value(value), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
