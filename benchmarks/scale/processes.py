"""Measure a run in two processes against one, and the doctor's estimate of a run against the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.measure import Measurement, in_turn
from benchmarks.scale.sweeps import ITEMS, small_suite
from harness.config.run_spec import RunSpec
from harness.evaluation.groups import load_evaluation_plan
from harness.lmeval.library import TaskLibrary
from harness.pipeline.needs.probe import Probe, probe_run
from harness.pipeline.run import run
from harness.rundir.reader import RunDir
from harness.rundir.store import read_manifest

MINUTES = 20.0


def process_rows(folder: Path, rounds: int) -> Iterator[Measurement]:
    """Yield a step's milliseconds in two processes against one, and the probe's seconds of a run against the run's."""
    suite = small_suite(folder, adapters={"opd": {}})

    def step(processes: int, seed: int) -> float:
        several = suite.model_copy(update={"parallel": suite.parallel.model_copy(update={"processes": processes})})
        found = _done(RunSpec(several, "opd", 0, out=folder / f"processes{processes}-{seed}"))
        times = [line.seconds["step"] or 0.0 for line in found.step_lines(1) if line.seconds]
        return 1000 * median(times[1:])

    steps = in_turn({str(count): lambda seed, count=count: step(count, seed) for count in (2, 1)}, rounds)
    yield Measurement("a training step in two processes", "ms, less is better", steps["2"], "in one", steps["1"])
    spec = RunSpec(suite, "opd", 0, out=folder)
    cells = load_evaluation_plan(TaskLibrary(suite.include, suite.data), suite).cells
    items = {name: len(task.test_docs(ITEMS)) for name, task in cells.items()}
    probes, runs = list[float](), list[float]()
    for number in range(rounds):
        probe = probe_run(spec, items, MINUTES)
        assert isinstance(probe, Probe), probe
        probes.append(probe.train + probe.evaluate)
        seconds = _done(replace(spec, out=folder / f"probed{number}")).seconds
        runs.append(seconds["train"] + seconds["evaluate"])
    yield Measurement("training and evaluation as the doctor's probe estimates", "s", probes, "what the run took", runs)


def _done(spec: RunSpec) -> RunDir:
    manifest = read_manifest(run(spec))
    assert manifest is not None
    return RunDir(spec.path, manifest)
