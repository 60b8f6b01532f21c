"""Measure a run in two processes against one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.measure import Measurement, in_turn
from benchmarks.scale.sweeps import small_suite
from harness.config.run_spec import RunSpec
from harness.pipeline.run import run
from harness.rundir.reader import RunDir
from harness.rundir.store import read_manifest


def process_rows(folder: Path, rounds: int) -> Iterator[Measurement]:
    """Yield a step's milliseconds in two processes against one."""
    suite = small_suite(folder, adapters={"opd": {}})

    def step(processes: int, seed: int) -> float:
        several = suite.model_copy(update={"parallel": suite.parallel.model_copy(update={"processes": processes})})
        found = _done(RunSpec(several, "opd", 0, out=folder / f"processes{processes}-{seed}"))
        times = [line.seconds["step"] or 0.0 for line in found.step_lines(1) if line.seconds]
        return 1000 * median(times[1:])

    steps = in_turn({str(count): lambda seed, count=count: step(count, seed) for count in (2, 1)}, rounds)
    yield Measurement("a training step in two processes", "ms, less is better", steps["2"], "in one", steps["1"])


def _done(spec: RunSpec) -> RunDir:
    manifest = read_manifest(run(spec))
    assert manifest is not None
    return RunDir(spec.path, manifest)
