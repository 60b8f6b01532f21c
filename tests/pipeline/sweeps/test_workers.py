"""A sweep's processes end with it, even when it is killed; a signal leaves snapshots."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.pipeline.run import run
from harness.rundir.process.progress import Event

SCRIPT = """
import multiprocessing, subprocess, sys, time
from harness.pipeline.sweeps.workers import queue_manager, worker_pool

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


@pytest.mark.slow
@pytest.mark.parametrize("receivers", ["the sweep alone", "the sweep and its workers"])
def test_a_signalled_sweep_leaves_snapshots_and_the_same_command_continues(
    receivers: str, micro_file: Path, tmp_path: Path
):
    command = [sys.executable, "-m", "harness.cli.app", "sweep", str(micro_file), "--adapter", "opd,aopd"]
    command += ["--seed", "0", "--workers", "2", "--out", str(tmp_path), "--set", "training.steps=400"]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    logs = [next_log(tmp_path, entry) for entry in ("opd", "aopd")]
    if receivers == "the sweep alone":
        parent.send_signal(signal.SIGTERM)
    else:
        os.killpg(parent.pid, signal.SIGTERM)
    _, errors = parent.communicate(timeout=120)
    assert parent.returncode == 2
    assert "stopped by SIGTERM; the same command continues" in errors
    assert "Traceback" not in errors
    assert all((log.parent / "snapshot.pt").is_file() for log in logs)
    steps = [len(log.read_text().splitlines()) for log in logs]
    for entry, before in zip(("opd", "aopd"), steps, strict=True):
        assert next_step(micro_file, entry, tmp_path) == before + 1


class StoppedError(Exception):
    """Ends a run from within."""


def next_step(file: Path, entry: str, out: Path) -> int:
    """Go on with the sweep's run for one step, and return how many steps it has done then."""
    done: list[int] = []

    def stop(event: Event) -> None:
        if event.activity.startswith("stage 1") and event.done:
            done.append(event.done)
            raise StoppedError

    with pytest.raises(StoppedError):
        run(RunSpec(load_suite(str(file), ["training.steps=400"]), entry, 0, out=out), stop)
    return done[0]


def next_log(out: Path, entry: str) -> Path:
    """Wait for a run's third training step, and return its log."""
    wait_until(
        lambda: any(len(log.read_text().splitlines()) > 2 for log in out.glob(f"*/{entry}/*/*/*/train/steps.jsonl"))
    )
    (log,) = out.glob(f"*/{entry}/*/*/*/train/steps.jsonl")
    return log


def wait_until(true: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
