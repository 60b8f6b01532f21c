r"""The worker that asks math-verify: limits that hold, questions that do not disturb each other, nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.errors import TaskError
from tasks.math import verdicts
from tasks.math.verdicts import same
from tests.support.task_files import ROOT

ENDLESS = r"9^{9^{9^{9}}}"

DYING_PARENT = """
import os, signal, sys, threading, time
from tasks.math import verdicts

verdicts.same("1", "1.0")
print(verdicts._JUDGE._process.pid, flush=True)
if sys.argv[1] == "killed":
    threading.Thread(target=verdicts.same, args=("1", r"9^{9^{9^{9}}}", 2.0), daemon=True).start()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def worker() -> psutil.Process:
    """Return this process's worker, which has answered a question already."""
    assert same("1", "1.0")
    process = verdicts._JUDGE._process
    assert process is not None
    return psutil.Process(process.pid)


def verdicts_of(numbers: list[int]) -> list[tuple[bool | None, bool | None]]:
    """Return for each number whether it equals itself plus 0 (it does), and itself plus 1 (it does not)."""
    return [(same(str(number), f"{number}+0"), same(str(number), f"{number}+1")) for number in numbers]


def put_verdicts(results: Any, numbers: list[int]) -> None:
    results.put(verdicts_of(numbers))


def test_one_worker_lives_through_many_questions():
    before = worker().pid
    assert verdicts_of([1, 2, 3]) == [(True, False)] * 3
    assert worker().pid == before


@pytest.mark.pitfall(
    "math-verify never finishes on some answers",
    area="Grading",
    guard="the kernel's timer ends `tasks/math/verdict_worker.py`",
    evidence="there is no timer",
)
def test_what_takes_too_long_is_ended_and_the_next_question_is_answered():
    before = worker()
    started = time.monotonic()
    assert same("1", ENDLESS, seconds=0.5) is None
    assert time.monotonic() - started < 60
    assert not before.is_running()
    assert same(r"\frac{1}{2}", "0.5") is True
    assert same(r"\frac{1}{2}", "0.6") is False


def test_a_worker_has_a_limit_of_memory():
    assert worker().rlimit(psutil.RLIMIT_AS)[0] == 2 << 30


def test_a_worker_that_was_killed_between_questions_is_replaced():
    before = worker()
    before.kill()
    assert verdicts_of([4]) == [(True, False)]
    assert worker().pid != before.pid


def test_a_worker_that_is_killed_in_a_question_is_replaced_and_asked_again():
    before = worker()
    threading.Timer(0.3, before.kill).start()
    assert same("1", ENDLESS, seconds=1.0) is None
    assert verdicts_of([5]) == [(True, False)]


def test_an_interrupted_question_leaves_no_verdict_for_the_next_one():
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    stopped = worker()
    stopped.suspend()
    before = signal.signal(signal.SIGUSR1, interrupt)

    def signal_when_asked() -> None:
        while not verdicts._JUDGE._lock.locked():
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=signal_when_asked).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            same("1", "1.00")
    finally:
        signal.signal(signal.SIGUSR1, before)
    with suppress(psutil.NoSuchProcess):
        stopped.resume()
    assert same("1", "2") is False


@pytest.mark.pitfall(
    "math-verify's own time limit is signal.alarm, which raises on every thread except the main one",
    area="Grading",
    guard="`tasks/math/verdicts.py` runs it in a separate process",
    evidence="math-verify is called directly, as its documentation does",
)
def test_threads_get_their_own_verdicts():
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(verdicts_of, [[number] for number in range(40)]))
    assert found == [[(True, False)]] * 40


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_daemonic_processes_have_workers_of_their_own(method: str):
    before = worker()
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=put_verdicts, args=(results, list(range(20))), daemon=True)
    process.start()
    assert verdicts_of(list(range(20))) == [(True, False)] * 20
    assert results.get(timeout=120) == [(True, False)] * 20
    process.join()
    assert process.exitcode == 0
    assert worker().pid == before.pid


@pytest.mark.slow
def test_workers_of_a_sweep_grade():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(verdicts_of, [[1, 2], [3]])) == [[(True, False)] * 2, [(True, False)]]


@pytest.mark.parametrize("end", ["exits", "killed"])
@pytest.mark.slow
def test_no_worker_outlives_its_parent(end: str):
    done = subprocess.run([sys.executable, "-c", DYING_PARENT, end], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (0 if end == "exits" else -signal.SIGKILL), done.stderr
    assert done.stderr == ""
    deadline = time.monotonic() + 60
    while (alive := _runs(int(done.stdout))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def test_a_worker_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = tmp_path / "broken.py"
    script.write_text("import no_such_module_anywhere")
    monkeypatch.setattr(verdicts, "SCRIPT", script)
    monkeypatch.setattr(verdicts, "_JUDGE", verdicts._Judge())
    with pytest.raises(TaskError, match=r"math-verify's process .*status 1\b"):
        same("1", "2")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
