"""Measure how long commands take before their work: whole processes, timed from outside, on the present machine."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import in_turn, with_range
from benchmarks.report_runs import Scale, write_runs
from benchmarks.results_page import table

SMALL = Scale(adapters=("opd", "aopd"), seeds=2, items=50, steps=20)
TARGETS = {"harness --help": "0.5", "harness compare": "4", "harness adapters": "3", "harness run tiny --dry-run": "5"}


def section(rounds: int) -> str:
    """Return the section of the page: wall-clock and processor seconds of each command, and its target."""
    with tempfile.TemporaryDirectory() as folder:
        runs = write_runs(Path(folder), SMALL)
        commands = {
            "harness --help": ["--help"],
            "harness compare": ["compare", *map(str, sorted(runs.iterdir())[:2])],
            "harness adapters": ["adapters"],
            "harness tasks": ["tasks"],
            "harness run tiny --dry-run": ["run", "tiny", "--dry-run"],
        }
        timed = in_turn({name: lambda _, words=words: seconds(words) for name, words in commands.items()}, rounds)
    rows = [
        [
            f"`{name}`",
            with_range([wall for wall, _ in pairs]),
            with_range([cpu for _, cpu in pairs]),
            TARGETS.get(name, "–"),
        ]
        for name, pairs in timed.items()
    ]
    return f"## Start of the commands\n\n{table(['command', 'seconds', 'processor seconds', 'target, seconds'], rows)}"


def seconds(words: list[str]) -> tuple[float, float]:
    """Return wall-clock and processor seconds of one call of the command line."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "harness.cli.app", *words]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "120"})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
