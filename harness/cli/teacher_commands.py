"""The commands about teachers: `teacher cache` writes scores to disk before any run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Include, Order, Out, Overrides, SuiteName, check_entries, check_order, read_suite
from harness.terminal.console import SafeConsole, announce

teacher = typer.Typer(add_completion=False, no_args_is_help=True, help="Prepare a teacher.")


@teacher.callback()
def options() -> None:
    """Prepare a teacher."""


@teacher.command()
def cache(
    suite: SuiteName,
    adapter: Annotated[
        str | None, typer.Option(help="The adapter whose scores are needed; default: the suite's first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the suite's first.")] = None,
    order: Order = "default",
    rollouts: Annotated[
        list[Path] | None, typer.Option(help="Run directories whose kept rollouts are also scored.")
    ] = None,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Score the training references with the teacher, and add the scores that its cache file lacks."""
    announce(f"reading suite {suite}")
    loaded = read_suite(suite, overrides, include_path, None)

    from harness.config.run_spec import RunSpec
    from harness.pipeline.adapter_checks import check_adapters
    from harness.pipeline.teacher_cache import fill_cache
    from harness.rundir.process.progress import Display

    entry = adapter or next(iter(loaded.adapters))
    check_entries(loaded, [entry])
    check_adapters(loaded, [entry])
    spec = RunSpec(loaded, entry, loaded.seeds[0] if seed is None else seed, order, out)
    check_order(spec)
    console = SafeConsole()
    with Display(console) as display:
        filled = fill_cache(spec, rollouts or [], display)
    for stage in filled:
        console.say(f"{stage.name}: {stage.responses} responses, {stage.scored} scored now", wrap=True)
