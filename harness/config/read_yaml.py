"""Read YAML that people write: suites, studies, claims, values on the command line. Likely mistakes are refused.

It guesses less than YAML 1.1: `yes`, `no`, `on` and `off` stay text, `1:30` is not 90, and a repeated key is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from harness.config.base import is_list, is_mapping
from harness.errors import ConfigError

MOST_VALUES = 100_000  # in a file; the values of an alias count each time it is used


class _Loader(yaml.SafeLoader):
    """Reads plain YAML, with the booleans and decimal integers of YAML 1.2."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping's node; raises `ConstructorError` for a repeated key, of which PyYAML would keep the last value."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            seen.add(key.value)
        return node


_CHANGED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:int"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _CHANGED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))  # pyright: ignore[reportUnknownMemberType]


def read_yaml(path: Path) -> Any:
    """Return a YAML file's content, with a copy for every alias; raises `ConfigError` with file, line and what is wrong."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(describe_yaml_error(path, error)) from error


def describe_yaml_error(path: Path, error: Exception) -> str:
    """Return a sentence with a file, the line of an error in its YAML, and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark else ""
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{path}{line}: not valid YAML ({problem})"


def parse_yaml(text: str) -> Any:
    """Return the value of YAML text, with a copy for every alias; raises `yaml.YAMLError` for text that is not valid."""
    try:
        value: Any = yaml.load(text, _Loader)
        _refuse_size(value)
        return _copied(value)
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(f"nested too deeply, or an impossible value ({error})") from error


def _refuse_size(value: Any) -> None:
    """Raise `YAMLError` for aliases that contain themselves, or that expand to more than MOST_VALUES values."""
    sizes: dict[int, int] = {}
    unfinished: set[int] = set()

    def size(part: Any) -> int:
        if not is_mapping(part) and not is_list(part):
            return 1
        if id(part) in unfinished:
            raise yaml.YAMLError("an anchor contains an alias of itself; write the value out")
        if id(part) not in sizes:
            unfinished.add(id(part))
            sizes[id(part)] = 1 + sum(size(below) for below in (part.values() if is_mapping(part) else part))
            unfinished.discard(id(part))
        return sizes[id(part)]

    if (count := size(value)) > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases expand to {count:,} values, expected at most {MOST_VALUES:,}")


def _copied(value: Any) -> Any:
    """Return a deep copy without shared parts, so that changing one place leaves the others; keys and dates become text."""
    if is_mapping(value):
        return {str(key): _copied(part) for key, part in value.items()}
    if is_list(value):
        return [_copied(part) for part in value]
    return value if isinstance(value, (bool, int, float)) or value is None else str(value)
