"""Measure a report over 30 runs and 100,000 graded answers: seconds to build it, and the size of its page and folder.

The runs are synthetic (`benchmarks.report_runs`). Every build runs in a separate process, so starting Python and importing
libraries counts.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import with_range
from benchmarks.report_runs import Scale, write_runs
from benchmarks.results_page import table

MB = 1e6
WANTED_SECONDS, WANTED_MB = 60, 20


@dataclass(frozen=True)
class Built:
    """One build: wall-clock and processor seconds, and the bytes of report.html, the largest items page, and all files."""

    seconds: float
    processor: float
    page: int
    largest_item_page: int
    folder: int


def section(rounds: int, scale: Scale | None = None) -> str:
    """Measure and return the page's section."""
    scale = scale or Scale()
    with tempfile.TemporaryDirectory() as folder:
        runs = write_runs(Path(folder), scale)
        found = [measure_build(runs, Path(folder) / f"report{number}") for number in range(rounds)]
    return text(found, scale)


def measure_build(runs: Path, out: Path) -> Built:
    """Build a report into a new folder, and measure it."""
    started, before = time.perf_counter(), _processor()
    subprocess.run([sys.executable, "-m", "harness.cli.app", "report", str(runs), "--out", str(out)], check=True)
    seconds, processor = time.perf_counter() - started, _processor() - before
    sizes = {file.relative_to(out): file.stat().st_size for file in out.rglob("*") if file.is_file()}
    items = [size for file, size in sizes.items() if file.parts[0] == "items"]
    return Built(seconds, processor, sizes[Path("report.html")], max(items, default=0), sum(sizes.values()))


def text(found: Sequence[Built], scale: Scale) -> str:
    """Return the section: a row for each measurement, with its target."""
    rows = [
        ["seconds to build", with_range([b.seconds for b in found], 1), f"under {WANTED_SECONDS}"],
        ["processor seconds", with_range([b.processor for b in found], 1), ""],
        ["MB of report.html", _median(found, lambda b: b.page), f"under {WANTED_MB}"],
        ["MB of the largest page of answers", _median(found, lambda b: b.largest_item_page), f"under {WANTED_MB}"],
        ["MB of the whole folder, figures as PNG and SVG too", _median(found, lambda b: b.folder), ""],
    ]
    note = (
        f"{scale.runs} runs ({len(scale.adapters)} methods, {scale.seeds} seeds), {len(scale.stages)} stages of {scale.steps} "
        f"logged steps, {len(scale.tasks)} tasks of {scale.items} items, {scale.samples:,} graded answers of some "
        f"{scale.response} words to prompts of {scale.prompt}. Median (smallest to largest) of {len(found)} builds, each in "
        "a separate process."
    )
    return "\n\n".join(["## A large report", table(["measured", "median (range)", "target"], rows), note])


def _processor() -> float:
    """Return the processor seconds of all finished child processes; time waiting for a busy machine does not count."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _median(found: Sequence[Built], of: Callable[[Built], int]) -> str:
    return f"{statistics.median(of(b) for b in found) / MB:.1f}"
