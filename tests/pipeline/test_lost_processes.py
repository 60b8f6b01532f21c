"""A training process that ends too early ends the run in seconds, with a sentence that says which and why."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import distributed

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.errors import RunError, TrainingError
from harness.lm.ranks import current_ranks
from harness.pipeline.processes.rank_processes import several_processes
from harness.pipeline.processes.rank_watch import OtherEndedError, RankWatch
from harness.pipeline.run import run
from harness.rundir.process.progress import Event
from harness.rundir.store import is_finished
from tests.support.models import micro_suite, write_yaml
from tests.support.processes import started_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KILLED = r"process {} was ended by SIGKILL, most often because memory ran out; .*same command continues"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def fail() -> None:
    raise LookupError("nothing there\nlook elsewhere")


def refuse() -> None:
    raise TrainingError("the teacher has no score; ask another")


def rest() -> None:
    time.sleep(300)


class EndsWhenLoaded:
    """The work of a process that dies when it reads what to do, before it joins the others."""

    def __init__(self, end: Callable[[], object]) -> None:
        self.end = end

    def __reduce__(self) -> Any:
        """Call `end` in the process that reads this."""
        return self.end, ()

    def __call__(self, device: str, folder: Path) -> None:
        """Never be reached."""


def exchange_then(end: Callable[[], object], _device: str, _folder: Path) -> None:
    """Exchange something with all processes; then the last one ends, and another one works on."""
    ranks = current_ranks()
    ranks.gather(None)
    if ranks.rank == ranks.size - 1:
        end()
    time.sleep(300)


def wait_for_the_second() -> None:
    """Wait in the first process for one that lives; gloo says nothing of the others, and NCCL of none."""
    distributed.recv(torch.zeros(1), src=1)


def wait_for_all() -> None:
    current_ranks().gather(None)


def train(end: Callable[[], object], count: int = 2, then: Callable[[], object] = wait_for_all) -> None:
    """Train in several processes, the last of which ends."""
    with several_processes(count, "cpu", partial(exchange_then, end)):
        current_ranks().gather(None)
        then()


@pytest.fixture(autouse=True)
def in_seconds() -> Generator[None]:
    """Fail a test that waits for minutes, and one that leaves processes behind."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 240
    assert not started_by(psutil.Process(), "--multiprocessing-fork")


@pytest.mark.parametrize("then", [wait_for_all, wait_for_the_second])
def test_a_process_that_is_killed_ends_the_others_with_its_number_and_signal(then: Callable[[], object]):
    with pytest.raises(RunError, match=KILLED.format("3 of 3")):
        train(kill, 3, then)


def test_a_process_that_ends_without_a_word_is_named_with_its_exit_code():
    with pytest.raises(RunError, match=r"process 2 of 2 ended with exit code 3; what it printed last .*continues"):
        train(leave)


def test_a_process_that_dies_before_it_joins_is_not_waited_for():
    with (
        pytest.raises(RunError, match=KILLED.format("2 of 2")),
        several_processes(2, "cpu", EndsWhenLoaded(kill)),
    ):
        pytest.fail("it was not missed")


def test_a_process_that_dies_after_the_last_step_is_named():
    with pytest.raises(RunError, match=KILLED.format("2 of 2")):
        train(kill, then=lambda: None)


@pytest.mark.parametrize("then", [wait_for_all, wait_for_the_second])
def test_an_error_that_a_process_raises_is_that_of_the_run(then: Callable[[], object]):
    with pytest.raises(TrainingError, match="the teacher has no score; ask another"):
        train(refuse, 3, then)


@pytest.mark.parametrize("then", [wait_for_all, wait_for_the_second])
def test_an_unforeseen_error_of_a_process_is_told_and_its_traceback_kept(then: Callable[[], object]):
    with pytest.raises(RuntimeError, match="process 3 of 3 failed with LookupError: nothing there") as caught:
        train(fail, 3, then)
    assert not isinstance(caught.value, RunError), "it is probably a bug of the harness"
    assert "in exchange_then" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "error", [KeyError("mine"), distributed.DistBackendError("NCCL error: Duplicate GPU detected")]
)
def test_the_first_processs_own_error_stays_its_own(error: Exception):
    def break_off() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        train(rest, then=break_off)
    assert caught.value is error


def test_a_process_whose_traceback_could_not_be_written_is_named_with_its_exit_code(tmp_path: Path):
    file = tmp_path / "error"
    file.touch()  # as on a full disk
    process = multiprocessing.get_context("spawn").Process(target=leave)
    process.start()
    with RankWatch([process], [str(file)]) as watch:
        with pytest.raises(OtherEndedError):
            watch.wait()
        assert re.search(r"process 2 of 2 ended with exit code 3\b", str(watch.cause))


def test_a_run_of_which_a_process_is_killed_goes_on_from_its_snapshot(tmp_path: Path):
    raw: dict[str, Any] = {**micro_suite(), "snapshot_minutes": 0, "probes": [], "parallel": {"processes": 2}}
    raw["training"] |= {"steps": 6}
    raw["evaluation"] |= {"limit": 1, "drift": None}
    spec = RunSpec(load_suite(str(write_yaml(tmp_path / "micro.yaml", raw))), "aopd", 0, out=tmp_path / "runs")

    def kill_other(event: Event) -> None:
        if f"{event.activity} {event.done}" == "stage 1 tiny_weather 3":
            (other,) = started_by(psutil.Process(), "--multiprocessing-fork")
            other.kill()

    with pytest.raises(RunError, match=KILLED.format("2 of 2")):
        run(spec, kill_other)
    seen: list[Event] = []
    run(spec, seen.append)
    assert is_finished(spec)
    assert min(event.done for event in seen if event.activity == "stage 1 tiny_weather" and event.done) >= 3
