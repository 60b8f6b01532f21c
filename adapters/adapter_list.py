"""`harness adapters`: the registered adapters, what they need, and their options."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from rich.markup import escape
from rich.table import Table

from adapters.wrappers.wrapper import Wrapper
from harness.adapter import Adapter, make_adapter, registered
from harness.config.suite import AdapterEntry
from harness.errors import ConfigError


def adapter_table() -> Table:
    """Return the registered adapters with what they need of a teacher, their options and defaults."""
    table = Table("name", "trains by", "teacher", "options and their defaults", title="adapters", show_lines=True)
    for name, point in registered().items():
        table.add_row(*(escape(cell) for cell in _row(name, point)))
    return table


def _row(name: str, point: EntryPoint) -> tuple[str, str, str, str]:
    try:
        cls = point.load()
    except (ImportError, AttributeError) as error:
        return name, f"cannot be loaded: {error}", "", ""
    fields = cls.model_fields.items()
    options = "\n".join(f"{key}: {_default(field)}" for key, field in fields)
    return name, (cls.__doc__ or "").strip().splitlines()[0], _teacher(name, cls), options


def _default(field: Any) -> str:
    return "(must be given)" if field.is_required() else str(field.get_default(call_default_factory=True))


def _teacher(name: str, cls: type[Adapter]) -> str:
    if issubclass(cls, Wrapper):
        return "as what it wraps"
    try:
        needs = make_adapter(name, AdapterEntry(adapter=name)).requirements
    except ConfigError:
        return "depends on its options"
    return needs.teacher + (" + the stage's start" if needs.reference else "")
