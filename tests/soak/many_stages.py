"""Hundreds of stages in one process: memory, open files and seconds a stage stay flat."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import psutil

from harness.config.run_spec import RunSpec
from harness.pipeline.run import run
from tests.soak.outcomes import Outcomes

WARM_UP = 3  # runs: libraries fill their caches
MEMORY, SECONDS = 0.10, 2.0  # growth of resident memory, and of seconds a stage, from the first third to the last
COUNTED = "stages of runs with other seeds; changed: memory grew by 10 %, a file stayed open, or seconds doubled."


def train_many(spec: RunSpec, folder: Path, stages: int) -> Outcomes:
    """Do runs of a spec with other seeds until `stages` stages are trained and evaluated; compare first and last thirds."""
    found, process = Outcomes("stages in one process", COUNTED), psutil.Process(os.getpid())
    memory: list[int] = []
    files: list[int] = []
    seconds: list[float] = []
    each = len(spec.stages)
    for number in range(WARM_UP + max(3, stages // each)):
        started = time.process_time()
        run(replace(spec, seed=number, out=folder / "many"))
        gc.collect()
        if number >= WARM_UP:
            memory.append(process.memory_info().rss)
            files.append(process.num_fds())
            seconds.append((time.process_time() - started) / each)
            for _ in range(each):
                found.add("held")
    third = len(memory) // 3
    first, last = (median(part) for part in (memory[:third], memory[-third:]))
    early, late = (median(part) for part in (seconds[:third], seconds[-third:]))
    found.note = (
        f"Memory {first / 2**20:.0f} to {last / 2**20:.0f} MiB, open files {files[0]} to {files[-1]}, "
        f"CPU seconds a stage {early:.2f} to {late:.2f}."
    )
    if (
        last > first * (1 + MEMORY)
        or max(files[-third:]) > max(files[:third])
        or min(seconds[-third:]) > early * SECONDS
    ):
        found.add("changed", found.note)
    return found
