"""Measure the doctor's estimate of a run against the run itself: its time, its memory and the disk space of its answers.

Both are timed in seconds of processor time, each in a process of its own, because other work changes wall-clock time.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Measurement
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.evaluation.groups import load_evaluation_plan
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from harness.pipeline.needs.probe import read_probe, shorten
from harness.pipeline.run import run
from harness.pipeline.sweeps.sweep import models_of
from harness.pipeline.sweeps.workers import worker_pool
from harness.rundir.reader import RunDir
from harness.rundir.store import read_manifest

STEPS, EVERY = 30, 10  # of each stage, and between two points of its learning curve
METHODS = ("opd", "sft")
SETTINGS = (f"training.steps={STEPS}", f"stages.0.training.steps={STEPS}", f"evaluation.every={EVERY}")
# One batch is measured: 50 of the 200 items of each task, and all of them are estimated.
BATCH = "evaluation.batch_size=50"


def estimate_rows(folder: Path, rounds: int) -> Iterator[Measurement]:
    """Yield the doctor's estimates of short runs of the suite `tiny` against the runs."""
    suite = load_suite("tiny", [*SETTINGS, BATCH])
    library = TaskLibrary(suite.include, suite.data)
    evaluated = load_evaluation_plan(library, suite)
    for entry in METHODS:
        spec = RunSpec(suite, entry, 0, out=folder / "whole")
        for _, model, seed in models_of([spec]).values():
            checkpoint_of(model, seed, library)
        probes, runs = list[tuple[float, ...]](), list[tuple[float, ...]]()
        for number in range(rounds):
            probe = read_probe(_timed(shorten(spec, folder / f"short-{entry}-{number}")), spec, evaluated)
            found = _read(_timed(replace(spec, out=folder / f"whole-{entry}-{number}")))
            probes.append((probe.times.total, probe.peak_train / 2**20, probe.times.sample_bytes / 2**20))
            runs.append((found.seconds["total"], found.peak_memory["train"] / 2**20, _answers(found) / 2**20))
        for index, (what, unit) in enumerate((("time", "processor s"), ("memory", "MiB"), ("answers", "MiB"))):
            name = f"{what} of a run of tiny with {entry}, as the doctor's probe estimates"
            ours, theirs = ([values[index] for values in each] for each in (probes, runs))
            yield Measurement(name, unit, ours, "what the run took", theirs)


def _timed(spec: RunSpec) -> Path:
    """Do a run in a process of its own, in which all clocks of runs count processor time, and return its folder."""
    with worker_pool(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, spec).result()


def _run(spec: RunSpec) -> Path:
    time.perf_counter = time.process_time
    return run(spec)


def _read(path: Path) -> RunDir:
    manifest = read_manifest(path)
    assert manifest is not None
    return RunDir(path, manifest)


def _answers(found: RunDir) -> float:
    """Return the bytes of a run's stored answers, the distance from the start aside."""
    return sum(file.stat().st_size for file in found.path.glob("*/eval/*/samples.parquet"))
