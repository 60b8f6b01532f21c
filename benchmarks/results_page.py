"""Write RESULTS.md: how the figures were made, the ratios, and the phases of a training step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Measurement, median_of, with_range
from benchmarks.steps import Steps
from harness.rundir.schema import Session


@dataclass(frozen=True)
class BenchmarkResults:
    """The page's content: comparisons, each trainer's steps by repetition, notes on the method, and further sections."""

    rows: list[Measurement]
    steps: dict[str, list[Steps]]
    notes: list[str] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)


def page(findings: BenchmarkResults, made: Session, threads: int, repetitions: int) -> str:
    """Return the whole page; `made` describes the code, packages and machine."""
    sections = [
        "# Benchmarks",
        provenance(made, threads, repetitions),
        "## Ratios",
        table(
            ["measured", "unit", "ours", "against", "theirs", "ours / theirs (range)"],
            [cells(row) for row in findings.rows],
        ),
        "## A training step by phase",
        "Milliseconds, medians; `rest` is the student's forward, backward and update, batching and logging.",
        table(
            ["trainer", "generate", "teacher", "rest", "step", "steps/s", "tokens/s", "response length"],
            [_step_cells(name, steps) for name, steps in findings.steps.items()],
        ),
        "## How it was measured",
        "\n".join(f"- {note}" for note in findings.notes),
        *findings.sections,
    ]
    return "\n\n".join(sections) + "\n"


def provenance(made: Session, threads: int, repetitions: int) -> str:
    """Return a sentence on the command, commit, libraries and machine that made the figures."""
    hardware, packages = made.hardware, made.packages
    commit = f"commit `{(made.git.commit or 'unknown')[:12]}`" + (" with uncommitted changes" if made.git.dirty else "")
    libraries = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers"))
    return (
        f"Made by `{made.command}` at {commit}, {made.created}; {libraries}; {threads} thread of "
        f"{hardware['cpus']} CPUs ({cpu_model()}), {hardware['memory_gib']} GiB. Medians of {repetitions} repetitions "
        "in turn, ranges over repetitions; a ratio is taken inside each repetition."
    )


def cpu_model() -> str:
    """Return the processor's name, or `unknown` where /proc/cpuinfo does not have it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def cells(row: Measurement) -> list[str]:
    """Return a comparison as a table's row."""
    digits = 0 if statistics.median(row.theirs) >= 10 else 2
    ours, theirs = median_of(row.ours, digits), median_of(row.theirs, digits)
    return [row.what, row.unit, ours, row.baseline, theirs, f"**{with_range(row.ratios)}**"]


def _step_cells(name: str, runs: Sequence[Steps]) -> list[str]:
    milliseconds = [
        median_of([1000 * getattr(run, phase) / run.count for run in runs], 0)
        for phase in ("generate", "teacher", "rest", "seconds")
    ]
    rates = [median_of([r.steps_per_second for r in runs]), median_of([r.tokens_per_second for r in runs], 0)]
    return [name, *milliseconds, *rates, median_of([r.response_length for r in runs], 1)]
