"""Measure reports over 10, 100 and 500 runs: processor seconds and memory should grow no faster than the runs.

The runs are synthetic and small (`benchmarks.report_runs`): what matters is how a figure changes from row to row.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report_runs import Scale, write_runs
from benchmarks.results_page import table

RUNS = (10, 100, 500)
METHODS = 5
SMALL: dict[str, Any] = {"items": 20, "steps": 20, "prompt": 10, "response": 10, "drift_items": 8}


@dataclass(frozen=True)
class Cost:
    """The cost of a report over `runs` runs: processor seconds, and the peak memory of its process in bytes."""

    runs: int
    seconds: float
    memory: int


def section() -> str:
    """Measure and return the page's section."""
    costs = [measure(runs) for runs in RUNS]
    rows = [
        [f"{cost.runs}", f"{cost.seconds:.1f}", f"{1000 * cost.seconds / cost.runs:.0f}", f"{cost.memory / 2**20:.0f}"]
        for cost in costs
    ]
    note = (
        f"{METHODS} methods, 4 stages of {SMALL['steps']} logged steps, 5 tasks of {SMALL['items']} items. Each row includes "
        f"the import of libraries and the drawing of figures. One build per row, in a separate process."
    )
    head = ["runs", "processor seconds", "milliseconds per run", "MiB of memory"]
    return "\n\n".join(["## Reports over many runs", table(head, rows), note])


def measure(runs: int) -> Cost:
    """Build one report over synthetic runs in a separate process; raises `RuntimeError` where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        methods = [f"method_{number}" for number in range(METHODS - 2)]
        scale = Scale(adapters=("opd", "aopd", *methods), seeds=runs // METHODS, **SMALL)
        command = ["report", str(write_runs(Path(folder), scale)), "--out", str(Path(folder) / "report")]
        process = subprocess.Popen([sys.executable, "-m", "harness.cli.app", *command], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the report over {runs} runs ended with {status}")
    return Cost(runs, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def main(arguments: Sequence[str]) -> None:
    """Print the costs of reports over the numbers of runs on the command line."""
    for runs in map(int, arguments or map(str, RUNS)):
        cost = measure(runs)
        print(f"{cost.runs} runs: {cost.seconds:.1f} processor seconds, {cost.memory / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
