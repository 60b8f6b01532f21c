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
    adapter: Annotated[str | None, typer.Option(help="The method to estimate; default: the suite's first.")] = None,
    probe_minutes: Annotated[
        float, typer.Option(min=0, help="Limit of the short real run that measures; 0: only estimate.")
    ] = 5.0,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Print what is installed and missing, and estimate memory, time and disk of a suite's runs."""
    announce("looking at this machine")
    loaded = read_suite(suite, overrides, include_path, None) if suite else None
    if loaded is not None and adapter is not None:
        check_entries(loaded, [adapter])

    from harness.pipeline.needs.doctor import examine_machine, examine_suite

    console = SafeConsole()
    examine_machine(console, out)
    if loaded is not None:
        from harness.config.run_spec import RunSpec
        from harness.pipeline.adapter_checks import check_adapters

        entry = adapter or next(iter(loaded.adapters))
        check_adapters(loaded, [entry])
        runs = len(loaded.adapters) * len(loaded.seeds)
        examine_suite(console, RunSpec(loaded, entry, loaded.seeds[0], out=out), runs, probe_minutes)
