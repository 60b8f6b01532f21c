"""A sweep's processes end with it, even when it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.pipeline import sweep
from harness.pipeline.workers import VISIBLE, worker_pool

SCRIPT = """
import multiprocessing, subprocess, sys, time
from harness.pipeline.workers import queue_manager, worker_pool

def work(_):
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    print("up", flush=True)
    time.sleep(300)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with queue_manager(context) as manager:
        queue = manager.Queue()
        pool = worker_pool(2, context)
        list(pool.map(work, range(4)))
"""


def test_workers_and_what_they_started_end_within_seconds_of_a_killed_sweep(tmp_path: Path):
    script = tmp_path / "sweep.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    started = psutil.Process(parent.pid).children(recursive=True)
    assert sum(child.name() == "sleep" for child in started) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    time.sleep(0)


def visible(_: int) -> tuple[int, str | None]:
    time.sleep(0.3)
    return os.getpid(), os.environ.get(VISIBLE)


def handed(workers: int, gpus: list[str]) -> list[str | None]:
    """Return what each worker of a pool sees."""
    with worker_pool(workers, multiprocessing.get_context("spawn"), gpus) as pool:
        return sorted(dict(pool.map(visible, range(6 * workers))).values(), key=str)


def test_each_worker_sees_its_own_gpu_and_more_workers_share_them_in_turn():
    assert handed(2, ["GPU-a", "3"]) == ["3", "GPU-a"]
    assert handed(3, ["0", "1"]) == ["0", "0", "1"]


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
    for device in ("cpu", "cuda:1"):  # the suite says where a run works
        assert sweep.gpu_shares(micro.model_copy(update={"device": device})) == []


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
