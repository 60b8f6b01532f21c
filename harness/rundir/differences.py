"""Differences between two nested mappings, field by field: two configurations, or the `keys.fields` of two cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.config.base import is_list, is_mapping

ABSENT = "absent"


def find_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ, by dotted name, each with both values; `absent` stands for a missing one."""
    left, right = dict(_leaves(one)), dict(_leaves(other))
    names = dict.fromkeys([*left, *right])
    pairs = {name: (left.get(name, ABSENT), right.get(name, ABSENT)) for name in names}
    return {name: (here, there) for name, (here, there) in pairs.items() if here != there}


def without_autocast(value: Any) -> Any:
    """Return nested mappings and lists without the key `autocast`, which a suite may leave to the machine."""
    if is_mapping(value):
        return {name: without_autocast(part) for name, part in value.items() if name != "autocast"}
    return [without_autocast(part) for part in value] if is_list(value) else value


def format_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return differing fields as text: `settings.max_gen_toks (24 and 9), versions.torch (2.12.0 and 2.13.0)`."""
    return ", ".join(f"{name} ({here} and {there})" for name, (here, there) in differences.items())


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if is_mapping(value):
            yield from _leaves(value, f"{prefix}{name}.")
        elif is_list(value) and value and all(map(is_mapping, value)):
            yield from _leaves({str(place): part for place, part in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
