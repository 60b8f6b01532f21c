"""`harness adapters check`: run the conformance suite on an adapter and print each outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapters.conformance.all_checks import CHECKS, EVERY, check_adapter
from adapters.conformance.outcomes import Result
from adapters.wrappers.wrapper import Wrapper
from harness.adapter import GROUP, Adapter, make_adapter
from harness.config.plugins import load_plugin
from harness.config.read_yaml import parse_yaml
from harness.config.suite import AdapterEntry
from harness.errors import ConfigError

WRAPPED = "opd"
COLOURS: dict[Result, str] = {"passes": "green", "fails": "bold red", "does not apply": "dim", "skipped": "yellow"}


def print_check(console: Console, name: str, options: Sequence[str], processes: bool = True) -> bool:
    """Run the conformance suite on an adapter and print each outcome; return whether no check failed.

    `options` are KEY=VALUE texts; `processes` says whether to train over two processes too. Raises `ConfigError` for an
    unknown adapter or option.
    """
    adapter = _make(name, _parse(options))
    table = Table("check", "result", "finding, or promise", title=escape(f"{name}: {adapter!r}"), title_justify="left")
    counts = dict.fromkeys(COLOURS, 0)
    for outcome in check_adapter(adapter, EVERY if processes else CHECKS):
        counts[outcome.result] += 1
        colour = COLOURS[outcome.result]
        table.add_row(outcome.check, f"[{colour}]{outcome.result}[/]", f"[{colour}]{escape(outcome.sentence)}[/]")
    console.print(table)
    console.print(f"{name}: {', '.join(f'{count} {result}' for result, count in counts.items())}", highlight=False)
    return not counts["fails"]


def _make(name: str, options: dict[str, Any]) -> Adapter:
    """Return an adapter; a wrapper without the option `of` wraps OPD."""
    wraps = issubclass(load_plugin(GROUP, name, "adapter", Adapter), Wrapper)
    return make_adapter(name, AdapterEntry(adapter=name, options={"of": WRAPPED, **options} if wraps else options))


def _parse(options: Sequence[str]) -> dict[str, Any]:
    pairs = [option.partition("=") for option in options]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise ConfigError(f"--option {wrong[0]}: found no '=', expected KEY=VALUE, for example top_k=16")
    return {key: parse_yaml(value) for key, _, value in pairs}
