"""Measure the doctor's estimate of a run against the run itself: its time, its memory and the disk space of its answers.

Both are timed in seconds of processor time, each in a process of its own, because other work changes wall-clock time.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
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
SETTINGS = (f"training.steps={STEPS}", f"stages.0.training.steps={STEPS}", f"evaluation.every={EVERY}")
# As shipped, the probe's one batch holds all 200 items of a task; with the other batches it holds the 64 of a curve's point.
BATCHES = {"all items in a batch": (), "batches of 50 items": ("evaluation.batch_size=50",)}


def estimate_rows(folder: Path) -> Iterator[Measurement]:
    """Yield the doctor's estimate of a short run of the suite `tiny` with OPD against the run, for two sizes of batches."""
    for number, (batches, settings) in enumerate(BATCHES.items()):
        suite = load_suite("tiny", [*SETTINGS, *settings])
        library = TaskLibrary(suite.include, suite.data)
        spec = RunSpec(suite, "opd", 0, out=folder / f"whole{number}")
        for _, model, seed in models_of([spec]).values():
            checkpoint_of(model, seed, library)
        short = _timed(shorten(spec, folder / f"short{number}"))
        probe, found = read_probe(short, spec, load_evaluation_plan(library, suite)), _read(_timed(spec))
        rows = [
            ("time", "processor s", probe.times.total, found.seconds["total"]),
            ("memory", "MiB", _mib(probe.peak_train, probe.peak_evaluate), _mib(*found.peak_memory.values())),
            ("disk for answers", "MiB", _mib(probe.times.sample_bytes), _mib(_answers(found))),
        ]
        for what, unit, ours, theirs in rows:
            name = f"{what} of a run of tiny ({batches}), as the doctor's probe estimates"
            yield Measurement(name, unit, [ours], "what the run took", [theirs])


def _mib(*sizes: float) -> float:
    return max(sizes) / 2**20


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
