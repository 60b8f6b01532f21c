"""Locks: a file system without flock is refused in a sentence, and a process waits forever only for a training."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness.errors import RunError
from harness.evaluation.cell_cache import SharedCells
from harness.rundir.locks import waiting_lock
from harness.rundir.shared.shared_stages import SharedStages
from harness.rundir.store import RunStore


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system call as file systems without it answer."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("held", [False, True])
def test_a_file_system_without_locks_is_refused_in_a_sentence(held: bool, tmp_path: Path):
    if held:  # an earlier process on a machine with flock leaves its file, for which a soft lock would wait for ever
        (tmp_path / "evaluations").mkdir()
        (tmp_path / "evaluations" / "w.lock").touch()
    for lock in (SharedCells(tmp_path).locked("w"), RunStore(tmp_path / "run").locked()):
        with pytest.raises(RunError, match=r"has no file locks \(Function not implemented\)"), lock:
            pass


def test_a_lock_that_is_never_released_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.rundir.locks.LONGEST_WAIT", 0.2)
    path = tmp_path / "model.lock"
    other = FileLock(path, is_singleton=False)
    with other, pytest.raises(RunError, match=rf"{path} is held by another process"), waiting_lock(path):
        pass
    with waiting_lock(path):
        pass


def test_a_wait_for_a_training_is_announced_and_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.rundir.locks.LONGEST_WAIT", 0)
    (tmp_path / "stages").mkdir()
    other = (tmp_path / "stages" / "key.lock").open("wb")  # a lock of its own, as another process has it
    fcntl.flock(other, fcntl.LOCK_EX)
    waits: list[str] = []

    def announce() -> None:
        waits.append("wait")
        threading.Timer(0.3, other.close).start()

    stages = SharedStages(tmp_path)
    with stages.locked("key", announce):
        assert waits == ["wait"]
    with stages.locked("key", announce):
        pass
    assert waits == ["wait"], "only where another run has the lock"
