"""A sweep's processes end with it, even when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

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
