"""Find classes that packages register under an entry point group; a class is imported only when it is needed.

`BASES` has the groups, and what a class of each derives from.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from harness.errors import ConfigError

Base = TypeVar("Base")
BASES = {
    "harness.adapters": "adapters.LoopAdapter, adapters.Wrapper or adapters.Adapter",
    "harness.engines": "harness.engines.backend.Backend",
    "harness.teachers": "harness.teachers.teacher.TeacherKind",
}


def entry_points_of(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, those of third parties included."""
    return {point.name: point for point in _entry_points(group, tuple(sys.path))}


@cache
def _entry_points(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return a group's entry points, sorted by name; cached until `sys.path` changes, because reading them is slow."""
    return tuple(sorted(entry_points(group=group), key=lambda point: point.name))


def load_plugin(group: str, name: str, key: str, base: type[Base]) -> type[Base]:
    """Import the class that is registered as `name`; `key` is the suite's key that names it, for error messages.

    Raises `ConfigError` for a name that no package or more than one registers, an entry point that cannot be loaded, and a
    class that is not a `base` or lacks a method of it.
    """
    point = _point_of(group, name, key)
    where = f"{key}: the entry point {point.name} = {point.value}"
    try:
        loaded: Any = point.load()
    except Exception as error:  # Another package's module may raise anything when it is imported.
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{where} cannot be loaded ({type(error).__name__}: {reason}); fix or uninstall the package that registers it"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ConfigError(
            f"{where} is not a subclass of {base.__qualname__}; name a class there that derives from {BASES[group]}"
        )
    if inspect.isabstract(loaded):
        lacks = ", ".join(sorted(getattr(loaded, "__abstractmethods__", ())))
        raise ConfigError(f"{where} does not define {lacks}; write the missing method in the class")
    return loaded


def _point_of(group: str, name: str, key: str) -> EntryPoint:
    """Return the one entry point of a name."""
    what, known = group.removeprefix("harness.").removesuffix("s"), entry_points_of(group)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        more = (
            ""
            if near
            else f'; a package adds one under [project.entry-points."{group}"] in its pyproject.toml, and has to be installed '
            "again after a change there"
        )
        raise ConfigError(
            f"{key}: there is no {what} {name!r}; {hint}registered are {', '.join(known) or 'none'}{more}"
        )
    places = {point.value: point for point in _entry_points(group, tuple(sys.path)) if point.name == name}
    if len(places) > 1:
        packages = " and ".join(f"{value} ({_package_of(point)})" for value, point in sorted(places.items()))
        raise ConfigError(
            f"{key}: the {what} {name!r} is registered twice: {packages}; rename the entry point of your own package in its "
            "pyproject.toml and install it again"
        )
    return known[name]


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a package"
