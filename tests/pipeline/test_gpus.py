"""Workers of a sweep see a GPU each; which GPUs there are is asked in one place, which these tests replace."""

from __future__ import annotations

import multiprocessing
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError
from harness.pipeline.sweeps import sweep
from harness.pipeline.sweeps.ray_sweep import sweep_on_ray
from harness.pipeline.sweeps.workers import worker_pool
from harness.rundir.process.progress import silent
from harness.teachers.server import Server
from harness.teachers.server_start import VISIBLE, ServerStart
from tests.support.visible_gpus import visible


def handed(workers: int, gpus: list[str]) -> list[str | None]:
    """Return the GPUs that each worker of a pool sees."""
    with worker_pool(workers, multiprocessing.get_context("spawn"), gpus) as pool:
        found: dict[int, str | None] = {}
        while len(found) < workers:  # one that starts late gets its question in a later round
            found |= dict(pool.map(visible, range(2 * workers)))
        return sorted(found.values(), key=str)


@pytest.mark.slow
def test_each_worker_sees_its_own_gpu_and_more_workers_share_them_in_turn():
    assert handed(2, ["GPU-a", "3"]) == ["3", "GPU-a"]
    assert handed(3, ["0", "1"]) == ["0", "0", "1"]


@pytest.mark.slow
def test_workers_without_gpus_keep_what_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VISIBLE, "7")
    assert handed(1, []) == ["7"]


@pytest.mark.parametrize(("size", "shares"), [(1, ["0", "1", "2"]), (2, ["0,1"]), (4, [])])
def test_a_run_takes_as_many_gpus_as_its_backend_spreads_a_model_over(
    micro: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, shares: list[str]
):
    class Spread:
        tensor_parallel_size = size

    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["0", "1", "2"])
    monkeypatch.setattr(Suite, "engine", Spread())
    suite = micro.model_copy(update={"device": "auto"})
    assert sweep.gpu_shares(suite) == shares
    specs = [RunSpec(suite, "none", seed, out=tmp_path) for seed in range(5)]
    if shares:
        assert sweep.default_workers(specs) == len(shares)
    for device in ("cpu", "cuda:0"):  # the suite says where a run works
        assert sweep.gpu_shares(micro.model_copy(update={"device": device})) == []


def test_a_run_of_several_processes_takes_a_gpu_for_each(micro: Suite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["0", "1", "2", "3", "4"])
    parallel = micro.parallel.model_copy(update={"processes": 2})
    assert sweep.gpu_shares(micro.model_copy(update={"device": "auto", "parallel": parallel})) == ["0,1", "2,3"]


@pytest.mark.parametrize(("gpus", "pools"), [("0", [(1, ["1"])]), ("7", [])])
def test_a_single_run_does_not_see_the_gpus_of_a_teacher_that_the_harness_starts(
    micro: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: str, pools: list[Any]
):
    found: list[Any] = []

    def pool(workers: int, _: Any, shares: list[str], __: Any) -> Any:
        found.append((workers, shares))
        raise KeyboardInterrupt

    def run(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(sweep, "worker_pool", pool)
    monkeypatch.setattr("harness.pipeline.run.run", run)
    monkeypatch.setattr(sweep, "started_teachers", lambda specs, _: nullcontext(specs))
    teacher = Server(kind="server", model="teacher", start=ServerStart(gpus=(gpus,)))
    spec = RunSpec(micro.model_copy(update={"device": "auto", "teacher": teacher}), "opd", 0, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep([spec], 1, silent)
    assert found == pools


def test_more_workers_than_gpus_are_named(micro: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    warned: list[str] = []

    def no_pool(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(sweep, "worker_pool", no_pool)
    spec = RunSpec(micro.model_copy(update={"device": "auto"}), "none", 0, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep([spec], 3, lambda event: warned.append(event.activity) if event.warning else None)
    assert len(warned) == 1
    assert "3 workers share 2 GPUs" in warned[0]


def test_another_gpu_than_the_first_is_chosen_by_what_a_run_sees(micro_file: Path):
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=1"):
        load_suite(str(micro_file), ["device=cuda:1"])
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        load_suite(str(micro_file), ["device=gpu"])


def test_runs_that_ask_the_same_rollout_servers_go_one_after_another(micro_file: Path, tmp_path: Path):
    served = ["backend=vllm_server", "vllm_server.urls=[http://127.0.0.1:9]"]
    specs = [RunSpec(load_suite(str(micro_file), served), "opd", seed, out=tmp_path) for seed in range(2)]
    assert sweep.default_workers(specs) == 1
    with pytest.raises(ConfigError, match="--workers 1"):
        sweep.sweep(specs, 2, silent)
    with pytest.raises(ConfigError, match="without --ray"):
        sweep_on_ray(specs, "auto", silent)
    sweep.refuse_shared_engine(specs[:1], "")
