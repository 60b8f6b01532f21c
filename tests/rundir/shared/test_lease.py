"""A run in a store is done by one process at a time: processes that race, die, pause and come back, on real stores."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from harness.errors import HarnessError, InUseError, RunError
from harness.rundir.shared.lease import Lease
from tests.support.lease_holder import RENEWAL, VALID, Holder, holders, lease_on

Start = Callable[[str, str], Holder]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/suite/opd/default/seed0"


@pytest.fixture
def start() -> Generator[Start]:
    with holders() as begin:
        yield begin


def files(url: str) -> list[str]:
    return sorted(os.listdir(Path(url.removeprefix("file://")) / "lease"))


@pytest.mark.pitfall(
    "two machines that share nothing but a store do one run twice into one folder",
    area="Scale",
    guard="`harness/rundir/shared/lease.py`: a numbered file that is created only where there is none",
    evidence='with `open(path, "wb")` in `_create_exclusively` all processes hold the lease',
)
def test_of_processes_that_start_at_once_one_holds_the_lease(url: str, start: Start):
    processes = [start(url, f"machine {number}") for number in range(4)]
    for process in processes:
        process.go()
    said = sorted(process.line() for process in processes)
    assert said[-1] == "held"
    assert all(sentence.startswith("InUseError") and "does this run" in sentence for sentence in said[:-1])


@pytest.mark.slow
def test_a_killed_owner_is_followed_at_once_on_its_machine_and_after_a_while_elsewhere(url: str, start: Start):
    for machine, waits in (("here", False), ("elsewhere", True)):
        owner = start(url, machine)
        owner.go()
        assert owner.line() == "held"
        sentences: list[str] = []
        with (
            pytest.raises(InUseError, match=rf"process {owner.process.pid} on .* does this run"),
            lease_on(url).held(sentences.append),
        ):
            pass
        owner.process.kill()
        owner.process.wait()
        sentences.clear()
        began = time.monotonic()
        with lease_on(url).held(sentences.append):
            assert time.monotonic() - began > VALID or not waits
            assert any(f"process {owner.process.pid}" in sentence for sentence in sentences) == waits


@pytest.mark.slow
def test_an_owner_that_was_away_for_too_long_stops_and_leaves_the_new_owner_alone(url: str, start: Start):
    owner = start(url, "elsewhere")
    owner.go()
    assert owner.line() == "held"
    owner.go()
    assert owner.line() == "still held"
    owner.process.send_signal(signal.SIGSTOP)
    mine = lease_on(url)
    with mine.held(lambda _: None):
        owner.process.send_signal(signal.SIGCONT)
        time.sleep(2 * RENEWAL)
        owner.go()
        assert owner.line().startswith("RunError")
        assert owner.process.wait(timeout=60) == 0
        mine.refuse_lost()
        assert mine.number == 2
        assert files(url)[-1] == "000002.json"


def test_a_lease_that_was_given_back_is_taken_at_once_and_old_ones_go(url: str):
    sentences: list[str] = []
    for number in (1, 2, 3):
        mine = lease_on(url, f"machine {number}")
        with mine.held(sentences.append):
            assert mine.number == number
            assert files(url) == [f"{number:06d}.json"]
    assert not sentences
    kept = json.loads((Path(url.removeprefix("file://")) / "lease/000003.json").read_text())
    assert kept["released"]
    assert kept["process"] == os.getpid()


class OverwritingSystem(MemoryFileSystem):
    """A store that takes the mode for exclusive creation and overwrites."""

    protocol = "overwriting"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super()._open(path, mode.replace("x", "w"), **options)


class RefusingSystem(MemoryFileSystem):
    """A store that does not know the mode for exclusive creation."""

    protocol = "refusing"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if "x" in mode:
            raise NotImplementedError(mode)
        return super()._open(path, mode, **options)


class RetryingSystem(MemoryFileSystem):
    """A store whose first answer to a creation is lost: the client asks again, and is refused by its own file."""

    protocol = "retrying"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if "x" in mode and path.endswith(".json") and not self.exists(path):
            return LostAnswer(super()._open(path, mode, **options))
        return super()._open(path, mode, **options)


class LostAnswer:
    """A file that is written, and whose writer hears that it exists."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> Any:
        return self.file.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)
        raise FileExistsError


@pytest.mark.parametrize("system", [OverwritingSystem, RefusingSystem])
def test_a_store_without_exclusive_creation_is_named_and_the_run_goes_on(
    system: type[MemoryFileSystem], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    sentences: list[str] = []
    mine = Lease(system(), "/runs/seed0", f"{system.protocol}://runs", VALID, RENEWAL)
    with mine.held(sentences.append):
        mine.refuse_lost()
    (sentence,) = sentences
    assert f"{system.protocol}://runs" in sentence
    assert not mine.system.find("/runs")


@pytest.mark.parametrize("system", [MemoryFileSystem, RetryingSystem])
def test_another_store_keeps_a_lease_like_a_folder(system: type[MemoryFileSystem], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    first, second = (Lease(system(), "/runs/seed0", "memory://", VALID, RENEWAL, name) for name in ("a", "b"))
    sentences: list[str] = []
    with first.held(sentences.append):
        assert not sentences
        with pytest.raises(InUseError), second.held(sentences.append):
            pass
    with second.held(sentences.append):
        second.refuse_lost()
        assert (first.number, second.number) == (1, 2)


def test_a_store_that_does_not_answer_is_one_sentence(url: str, monkeypatch: pytest.MonkeyPatch):
    mine = lease_on(url)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no key")

    for name in ("open", "pipe_file"):
        monkeypatch.setattr(mine.system, name, refuse)
    with pytest.raises(RunError, match="no key") as caught, mine.held(lambda _: None):
        pass
    assert isinstance(caught.value, HarnessError)


def test_a_store_that_fails_in_its_own_way_once_does_not_end_the_renewal(url: str, monkeypatch: pytest.MonkeyPatch):
    class HttpError(Exception):
        """What a client of a cloud raises; it is no OSError."""

    lease, fails = lease_on(url, "here"), [HttpError("503")]
    write = lease.system.pipe_file

    def fail_once(path: str, value: bytes, **options: Any) -> None:
        if fails and path.endswith("000001.json"):
            raise fails.pop()
        write(path, value, **options)

    with lease.held(lambda _: None):
        before = lease.system.cat_file(f"{lease.folder}/000001.json")
        monkeypatch.setattr(lease.system, "pipe_file", fail_once)
        deadline = time.monotonic() + 20
        while fails or lease.system.cat_file(f"{lease.folder}/000001.json") == before:
            assert time.monotonic() < deadline, "the lease is not renewed"
            time.sleep(RENEWAL / 4)
