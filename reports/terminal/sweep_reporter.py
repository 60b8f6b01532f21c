"""What the harness shows while runs go on and at their end: our entry in the group `harness.reporters`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from harness.config.run_spec import RunSpec
    from harness.pipeline.sweeps.study_runs import Plan


def render(specs: Sequence[RunSpec]) -> Path:
    """Render the report over all runs of the suite in this output folder, those of other commands included."""
    from reports.report.build import build_report

    folder = specs[0].out / specs[0].suite.name
    return build_report([folder], folder / "report")


def summarise(console: Console, specs: Sequence[RunSpec]) -> None:
    """Print the retention tables of these runs, who learned and ended where, and where the report is."""
    from reports.compare.headline import headline
    from reports.data.frames import load
    from reports.report.ends import describe_ends
    from reports.terminal.retention_table import print_retention

    frames = load([spec.path for spec in specs])
    print_retention(console, frames)
    for sentence in [*headline(frames), *describe_ends(frames)]:
        console.print(sentence, markup=False, highlight=False)
    console.print(f"report: {render(specs)}", markup=False, highlight=False, soft_wrap=True)


def write_study(console: Console, plan: Plan, page: Path) -> None:
    """Write a study's page and print where it is."""
    from reports.study.build_study import build_study

    console.print(f"page: {build_study(plan, page)}", markup=False, highlight=False, soft_wrap=True)
