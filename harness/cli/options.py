"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config.run_spec import RunSpec
    from harness.config.suite import Suite


def _collect_rarely(dry_run: bool) -> bool:
    """Collect garbage rarely in a dry run, which ends within seconds and would spend a tenth of them on it."""
    if dry_run:
        gc.set_threshold(200_000)
    return dry_run


SuiteName = Annotated[str, typer.Argument(help="A suite's name (tiny) or the path of its YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. training.steps=20; @FILE with many.")
]
Include = Annotated[list[Path] | None, typer.Option("--include-path", help="A folder with more tasks and suites.")]
Order = Annotated[str, typer.Option(help="One of the suite's orders; `joint` trains all tasks in one stage.")]
Out = Annotated[Path, typer.Option(help="Where run directories go.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="A finished stage of another run to start from, such as RUN/stage_1; {seed} stands for the run's seed.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one per GPU, else one per CPU.")]
DryRun = Annotated[bool, typer.Option(callback=_collect_rarely, help="Print what would be done; write nothing.")]
Render = Annotated[
    bool,
    typer.Option(
        "--report/--no-report", help="Render the suite's report; without, `harness report` does it later, once for all."
    ),
]
Track = Annotated[
    str | None, typer.Option(help="Trackers to copy figures to, comma-separated: tensorboard, wandb, trackio, mlflow.")
]
Names = Annotated[str | None, typer.Option(help="Comma-separated; default: all of the suite's.")]
Runs = Annotated[list[Path], typer.Argument(help="Run directories, or folders that contain run directories.")]


def read_suite(name: str, overrides: Sequence[str] | None, include: Sequence[Path] | None, track: str | None) -> Suite:
    """Return the suite `name` with the changes of `--set` and `--track`; raises `ConfigError` for a mistake in either."""
    from harness.config.load import load_suite

    trackers = [f"trackers=[{track}]"] if track else []
    return load_suite(name, [*(overrides or []), *trackers], include or [])


def check_entries(suite: Suite, names: Sequence[str]) -> None:
    """Raise `ConfigError` for an adapter that a suite lacks; one that is installed is added by `--set`, which it says."""
    from difflib import get_close_matches

    from harness.config.plugins import entry_points_of

    if not (unknown := sorted(set(names) - set(suite.adapters))):
        return
    installed = entry_points_of("harness.adapters")
    found = f"suite {suite.name} has no adapter {', '.join(unknown)}"
    if set(unknown) <= set(installed):
        settings = " ".join(f"--set adapters.{name}={{}}" for name in unknown)
        raise ConfigError(f"{found}; it has {', '.join(suite.adapters)}; add the installed one with {settings}")
    near = get_close_matches(unknown[0], [*suite.adapters, *installed], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"{found}; {hint}it has {', '.join(suite.adapters)}")


def check_order(spec: RunSpec) -> None:
    """Raise `ConfigError` for an order of stages that a run's suite lacks."""
    try:
        _ = spec.stages
    except ValueError as error:
        raise ConfigError(str(error)) from error


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the numbers of a comma-separated option; raises `ConfigError` where one is not a whole number."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{option} {text}: found {text!r}, expected whole numbers separated by commas, for example 0,1,2"
        ) from error
