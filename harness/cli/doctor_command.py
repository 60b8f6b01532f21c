"""The command `doctor`: what is installed and missing, and what a suite's runs need on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Include, Out, Overrides, check_entries, read_suite
from harness.terminal.console import SafeConsole, announce


def doctor(
    suite: Annotated[
        str | None, typer.Argument(help="A suite's name or file; default: look only at the machine.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The methods to estimate, comma-separated; default: the suite's first.")
    ] = None,
    probe_minutes: Annotated[
        float, typer.Option(min=0, help="Limit of the short real runs that measure, together; 0: only estimate.")
    ] = 5.0,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Print what is installed and missing, and estimate memory, time and disk of a suite's runs."""
    announce("looking at this machine")
    loaded = read_suite(suite, overrides, include_path, None) if suite else None
    entries = adapter.split(",") if adapter else []
    if loaded is not None:
        check_entries(loaded, entries)

    from harness.pipeline.needs.doctor import examine_machine, examine_suite

    console = SafeConsole()
    examine_machine(console, out)
    if loaded is not None:
        from harness.config.run_spec import RunSpec
        from harness.pipeline.adapter_checks import check_adapters

        entries = entries or [next(iter(loaded.adapters))]
        check_adapters(loaded, entries)
        specs = [RunSpec(loaded, entry, loaded.seeds[0], out=out) for entry in entries]
        examine_suite(console, specs, len(loaded.seeds), probe_minutes)
