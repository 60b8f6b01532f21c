"""Find classes that packages register under an entry point group; a class is imported only when it is needed.

The groups are `harness.adapters`, `harness.engines` and `harness.teachers`.
"""

from __future__ import annotations

import difflib
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from harness.errors import ConfigError

Base = TypeVar("Base")


def entry_points_of(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, those of third parties included."""
    return {point.name: point for point in _entry_points(group, tuple(sys.path))}


@cache
def _entry_points(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return a group's entry points, sorted by name; cached until `sys.path` changes, because reading them is slow."""
    return tuple(sorted(entry_points(group=group), key=lambda point: point.name))


def load_plugin(group: str, name: str, key: str, base: type[Base]) -> type[Base]:
    """Import the class that is registered as `name`; `key` is the suite's key that names it, for error messages.

    Raises `ConfigError` for an unknown name, an entry point that cannot be loaded, and a class that is not a `base`.
    """
    what, known = group.removeprefix("harness.").removesuffix("s"), entry_points_of(group)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{key}: there is no {what} {name!r}; {hint}registered are {', '.join(known) or 'none'}")
    point = known[name]
    try:
        loaded: Any = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}: the entry point {point.name} = {point.value} cannot be loaded ({error}); fix or uninstall the package "
            "that registers it"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ConfigError(
            f"{key}: the entry point {point.name} = {point.value} is not a subclass of {base.__qualname__}"
        )
    return loaded
