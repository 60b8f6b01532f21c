"""`harness adapters`: show the registered adapters as a table, as text, and as the page docs/adapters.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from adapters.wrappers.wrapper import Wrapper
from harness.adapter import GROUP, Adapter, make_adapter, registered
from harness.config.plugins import load_plugin
from harness.config.suite import AdapterEntry
from harness.errors import ConfigError

PAGE_HEAD = """# Adapters

<!-- written by `harness adapters --markdown`; a test keeps it so -->

An adapter is a training method. p is the teacher, q the student, y a response and y_t its token t. The advantage
A_t = log p(y_t) - log q(y_t) has no gradient. `reduction` averages the losses of the tokens. To add an adapter, read
[add-an-adapter.md](add-an-adapter.md).
"""


def adapter_table() -> Table:
    """Return a table of the registered adapters, with what they need from a teacher, their options and defaults."""
    table = Table(title="adapters", title_justify="left", show_lines=True)
    for column in ("name", "trains by", "teacher", "options and their defaults"):
        table.add_column(column, min_width=26 if column.startswith("options") else None)
    for name in registered():
        try:
            cls = load_plugin(GROUP, name, "adapter", Adapter)
        except ConfigError as error:
            table.add_row(escape(name), "cannot be used", "", escape(str(error)))
            continue
        options = "\n".join(f"{key}: {_default(field)}" for key, field in cls.model_fields.items())
        table.add_row(*map(escape, (name, _summary(cls), _teacher(name, cls), options)))
    return table


def describe_adapter(name: str) -> str:
    """Return a text about one adapter: its loss, paper, teacher, responses, and each option with default and meaning.

    Raises `ConfigError` for a name that is not registered or cannot be loaded.
    """
    cls = load_plugin(GROUP, name, "adapter", Adapter)
    options = [
        f"  {key}: {_default(field)}\n      {field.description or ''}" for key, field in cls.model_fields.items()
    ]
    facts = [fact.replace("**", "").replace("`", "") for fact in _facts(name, cls)]
    return "\n".join(
        [name, "", (cls.__doc__ or "").strip(), "", *facts, "", "options:" if options else "no options", *options]
    )


def adapter_page() -> str:
    """Return the page docs/adapters.md: each adapter's loss, paper, teacher, responses, options and deviations."""
    sections = [_section(name) for name in registered()]
    return "\n".join([PAGE_HEAD, *sections])


def _section(name: str) -> str:
    cls = load_plugin(GROUP, name, "adapter", Adapter)
    return "\n".join([f"## {name}", "", (cls.__doc__ or "").strip(), "", *_facts(name, cls), "", *_options(cls)])


def _facts(name: str, cls: type[Adapter]) -> Iterator[str]:
    if cls.formula:
        yield f"- **Loss of a token:** `{cls.formula}`"
    if cls.paper:
        yield f"- **Source:** {cls.paper}"
    yield f"- **Trains on responses of:** {_trains_on(name, cls)}"
    yield f"- **Needs of the teacher:** {_teacher(name, cls)}"
    if cls.deviation:
        yield f"- **Differs from its source:** {cls.deviation}"


def _options(cls: type[Adapter]) -> Iterator[str]:
    if not cls.model_fields:
        return
    yield from ("| option | default | meaning |", "|---|---|---|")
    for key, field in cls.model_fields.items():
        yield f"| `{key}` | `{_cell(_default(field))}` | {_cell(field.description or '')} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _summary(cls: type[Adapter]) -> str:
    return next(iter((cls.__doc__ or "").strip().splitlines()), "")


def _default(field: Any) -> str:
    if field.is_required():
        return "(must be given)"
    default = field.get_default(call_default_factory=True)
    return "null" if default is None else str(default)


def _trains_on(name: str, cls: type[Adapter]) -> str:
    if issubclass(cls, Wrapper):
        return "as the wrapped adapter"
    try:
        sources = make_adapter(name, AdapterEntry(adapter=name)).capabilities.trains_on
    except ConfigError:
        return "depends on its options"
    return " and ".join(f"the {source}" for source in ("student", "data", "teacher") if source in sources) or "none"


def _teacher(name: str, cls: type[Adapter]) -> str:
    if issubclass(cls, Wrapper):
        return "as the wrapped adapter"
    try:
        needs = make_adapter(name, AdapterEntry(adapter=name)).requirements
    except ConfigError:
        return "depends on its options"
    return needs.teacher + (" + the stage's start" if needs.reference else "")
