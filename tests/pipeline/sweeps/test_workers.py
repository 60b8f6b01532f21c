"""A sweep's processes report to it and end with it, even when it is killed; one that dies is one sentence."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec, plan_runs
from harness.config.suite import Suite
from harness.errors import RunError
from harness.pipeline.run import run
from harness.pipeline.sweeps.sweep import sweep
from harness.pipeline.sweeps.worker_link import WorkerEnd, linked
from harness.rundir.process.progress import Event, silent

SCRIPT = """
import multiprocessing, os, subprocess, sys, time
from harness.pipeline.sweeps.worker_link import linked
from harness.pipeline.sweeps.workers import worker_pool

def work(_):
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    os.write(1, b"up\\n")
    time.sleep(300)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with linked(2, context, print) as link:
        pool = worker_pool(2, context, link=link)
        list(pool.map(work, range(4)))
"""

# Workers import the script that started them, and so start a sweep of their own.
UNGUARDED = """
import sys
from pathlib import Path
from harness.config.load import load_suite
from harness.config.run_spec import plan_runs
from harness.errors import RunError
from harness.pipeline.sweeps.sweep import sweep

try:
    sweep(plan_runs(load_suite(sys.argv[1]), ["none"], [0, 1], "default", Path(sys.argv[2])), 2, print)
except RunError as error:
    print("ended:", error)
"""


def test_every_event_arrives_in_order_and_no_worker_waits_for_a_slow_display():
    shown, slow = list[Event](), threading.Event()

    def report(event: Event) -> None:
        slow.wait()
        shown.append(event)

    sent = [[Event(name, "stage 1", number, 4000) for number in range(4000)] for name in ("opd", "aopd")]
    with linked(2, multiprocessing.get_context("spawn"), report) as link:
        for pipe, events in zip(link.pipes, sent, strict=True):
            end = WorkerEnd(pipe, link.stopped)
            for event in events:  # more than a pipe holds
                end.report(event)
        slow.set()
    assert [[event for event in shown if event.run == events[0].run] for events in sent] == sent


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
    _, alive = psutil.wait_procs(started, timeout=120)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
def test_a_worker_that_cannot_import_is_one_sentence(micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "site" / "lm_eval"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libmissing.so: no such file')")
    monkeypatch.syspath_prepend(str(broken.parent))  # workers get this process's path, which has lm_eval already
    with pytest.raises(RunError, match=r"libmissing\.so.*harness doctor"):
        sweep(plan_runs(micro, ["none"], [0, 1], "default", tmp_path / "runs"), 2, silent)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_killed_worker_is_one_sentence_and_the_other_ones_run_ends_with_a_snapshot(micro_file: Path, tmp_path: Path):
    specs = plan_runs(load_suite(str(micro_file), ["training.steps=400"]), ["opd", "aopd"], [0, 1], "default", tmp_path)
    training = set[str]()

    def report(event: Event) -> None:
        if event.activity.startswith("stage 1") and event.done and event.run not in training:
            training.add(event.run)
            if len(training) == 2:
                multiprocessing.active_children()[0].kill()

    with pytest.raises(RunError, match=r"SIGKILL, .*memory .*--workers"):
        sweep(specs, 2, report)
    assert len(list(tmp_path.glob("*/*/*/*/*/train/snapshot.pt"))) == 1
    assert not [spec.path for spec in specs if spec.seed == 1 and spec.path.exists()], "no further run has begun"


@pytest.mark.slow
def test_a_script_that_workers_cannot_import_is_one_sentence(micro_file: Path, tmp_path: Path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, str(script), str(micro_file), str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "worker process ended with status 1" in done.stdout
    assert "bootstrapping" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("receivers", ["a thread of the sweep", "the sweep and its workers"])
def test_a_signalled_sweep_leaves_snapshots_and_the_same_command_continues(
    receivers: str, micro_file: Path, tmp_path: Path
):
    command = [sys.executable, "-m", "harness.cli.app", "sweep", str(micro_file), "--adapter", "opd,aopd"]
    command += ["--seed", "0", "--workers", "2", "--out", str(tmp_path), "--set", "training.steps=400"]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    logs = [next_log(tmp_path, entry) for entry in ("opd", "aopd")]
    if receivers == "a thread of the sweep":
        # The system may give a process's signal to any thread, and does while a debugger or profiler holds the main one.
        assert ctypes.CDLL(None).tgkill(parent.pid, other_thread(parent.pid), signal.SIGTERM) == 0
    else:
        os.killpg(parent.pid, signal.SIGTERM)
    _, errors = parent.communicate(timeout=600)
    assert parent.returncode == 2
    assert re.search("SIGTERM; .*same command continues", errors)
    assert "Traceback" not in errors
    assert all((log.parent / "snapshot.pt").is_file() for log in logs)
    steps = [len(log.read_text().splitlines()) for log in logs]
    for entry, before in zip(("opd", "aopd"), steps, strict=True):
        assert next_step(micro_file, entry, tmp_path) == before + 1


def other_thread(process: int) -> int:
    """Return a thread of a process that is not its main one and does not block SIGTERM, as libraries' own threads may."""
    for folder in Path(f"/proc/{process}/task").iterdir():
        blocked = int(re.findall(r"^SigBlk:\s+(\w+)", (folder / "status").read_text(), re.M)[0], 16)
        if int(folder.name) != process and not blocked >> (signal.SIGTERM - 1) & 1:
            return int(folder.name)
    raise AssertionError("no other thread takes the signal")


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


def wait_until(true: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
