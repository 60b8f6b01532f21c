"""Many runs: their order, their share of the processors, and the first error."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import RunError, TaskError
from harness.pipeline.sweeps.worker_link import WorkerEnd, linked
from harness.rundir.process.progress import silent
from harness.rundir.store import is_finished
from harness.rundir.training.snapshots import StopRequest
from tests.support.runs import cells, changed_suite, manifest


def test_a_sweep_does_the_first_seeds_comparison_first(micro: Suite, tmp_path: Path):
    from harness.config.run_spec import plan_runs
    from harness.pipeline.sweeps.sweep import default_workers

    specs = plan_runs(micro, ["opd", "aopd"], [3, 4], "default", tmp_path)
    assert [(spec.seed, spec.entry) for spec in specs] == [(3, "opd"), (3, "aopd"), (4, "opd"), (4, "aopd")]
    assert default_workers(specs[:1]) == 1
    assert 1 <= default_workers(specs) <= (os.cpu_count() or 1)


@pytest.mark.pitfall(
    "parallel runs that each use all processors are many times slower",
    area="Small machines",
    guard="`harness/pipeline/sweeps/sweep.py` gives each worker its share of the processors unless the suite sets the threads",
    evidence="workers get the suite's value or no limit",
)
def test_runs_side_by_side_share_the_processors(micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from harness.pipeline.sweeps import sweep

    seen: list[int] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sweep, "usable_processors", lambda: 8)
    monkeypatch.setattr("harness.pipeline.run.run", lambda *_: seen.append(torch.get_num_threads()))
    with linked(1, multiprocessing.get_context("spawn"), silent) as link:
        monkeypatch.setattr(sweep, "worker_end", lambda: WorkerEnd(link.pipes[0], link.stopped))
        for named in (None, 1):
            spec = RunSpec(micro.model_copy(update={"threads": named}), "none", 0, out=tmp_path)
            sweep._run_in_worker(spec, sweep.threads_of(spec.suite, 2))
    assert seen == [4, 1]
    assert sweep.threads_of(micro.model_copy(update={"threads": None}), 1) is None


def test_a_run_that_a_worker_holds_already_does_not_begin_after_an_error(
    micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from harness.pipeline.sweeps import sweep

    begun: list[RunSpec] = []
    monkeypatch.setattr("harness.pipeline.run.run", lambda spec, _: begun.append(spec))
    spec = RunSpec(micro, "none", 0, out=tmp_path)
    with linked(1, multiprocessing.get_context("spawn"), silent) as link:
        monkeypatch.setattr(sweep, "worker_end", lambda: WorkerEnd(link.pipes[0], link.stopped))
        sweep._run_in_worker(spec, None)
        link.stop()
        sweep._run_in_worker(spec, None)
        sweep._build_in_worker(spec, spec.suite.student, 0, None)
    assert begun == [spec]
    assert not list(tmp_path.iterdir())


def test_a_worker_that_a_signal_ends_is_an_error_of_the_sweep():
    from harness.pipeline.sweeps import sweep

    ended: Future[None] = Future()
    ended.set_exception(SystemExit(0))
    with pytest.raises(RunError, match="a worker was ended by a signal"):
        sweep._drain({ended: None}, lambda _: None, StopRequest())


@pytest.mark.slow
def test_runs_side_by_side_end_as_runs_one_after_another(micro: Suite, aopd: Path, control: Path, tmp_path: Path):
    from harness.config.run_spec import plan_runs
    from harness.pipeline.sweeps.sweep import sweep

    finished: list[RunSpec] = []
    specs = plan_runs(micro, ["aopd", "none"], [0], "default", tmp_path)
    sweep(specs, 2, lambda _: None, finished.append)
    assert {spec.entry for spec in finished} == {"aopd", "none"}
    for spec, alone in zip(specs, (aopd, control), strict=True):
        assert is_finished(spec)
        assert manifest(spec.path)["weights"] == manifest(alone)["weights"]
        assert cells(spec.path) == cells(alone)


def test_the_first_error_of_a_sweep_is_raised(tmp_path: Path):
    from harness.config.run_spec import plan_runs
    from harness.pipeline.sweeps.sweep import sweep

    suite = changed_suite(tmp_path, lambda raw: raw["training"].update(max_new_tokens=120))
    with pytest.raises(TaskError, match=r"context of 128\b"):
        sweep(plan_runs(suite, ["none", "opd"], [0], "default", tmp_path / "runs"), 1, lambda _: None)
