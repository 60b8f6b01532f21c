"""Stages that all methods share, in a store: of several machines one trains each of them, and the others fetch it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from harness.errors import RunError, StoppedError
from harness.rundir.files import write_sealed
from harness.rundir.records.training_records import DoneFile
from harness.rundir.shared.stored_shared_stages import StoredSharedStages
from harness.rundir.stage_folder import StageFolder

RENEWAL = 0.2  # seconds


@pytest.fixture
def store(tmp_path: Path) -> StoredSharedStages:
    return StoredSharedStages(fsspec.filesystem("file"), str(tmp_path / "bucket"), "file://bucket", 60, RENEWAL)


def train(place: Path, weights: str = "w") -> None:
    """Leave a finished stage in a folder."""
    (place / "train/checkpoint").mkdir(parents=True)
    (place / "train/checkpoint/model.safetensors").write_text(weights)
    write_sealed(place / "train/done.json", DoneFile(weights=weights, steps=1, seconds=1.0, prompts=1))


def once(store: StoredSharedStages, place: Path, work: Callable[[], object] = lambda: None) -> bool:
    """Train a stage where that is left to do; return whether it was."""
    with store.trained_once("k", place, lambda: None, lambda: None) as trains:
        if trains:
            work()
            train(place)
    return trains


def test_the_second_machine_fetches_what_the_first_one_trained(store: StoredSharedStages, tmp_path: Path):
    assert once(store, tmp_path / "a/k")
    assert not once(store, tmp_path / "b/k")
    assert StageFolder(tmp_path / "b/k").training_done == StageFolder(tmp_path / "a/k").training_done
    assert (tmp_path / "b/k/train/checkpoint/model.safetensors").read_text() == "w"


def test_a_machine_waits_for_another_one_that_trains(store: StoredSharedStages, tmp_path: Path):
    begun, waited = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert waited.wait(60)

    trained: list[bool] = []
    other = threading.Thread(target=lambda: trained.append(once(store, tmp_path / "a/k", work)))
    other.start()
    assert begun.wait(60)
    with store.trained_once("k", tmp_path / "b/k", waited.set, lambda: None) as trains:
        assert not trains
    other.join()
    assert trained == [True]
    assert StageFolder(tmp_path / "b/k").training_done is not None


def test_a_signal_ends_the_wait(store: StoredSharedStages, tmp_path: Path):
    def stop() -> None:
        raise StoppedError("stopped by SIGTERM")

    def wait() -> None:
        with (
            pytest.raises(StoppedError),
            store.trained_once("k", tmp_path / "b/k", lambda: None, stop),
        ):
            pass

    assert once(store, tmp_path / "a/k", wait)


def test_a_stage_whose_training_failed_is_trained_by_the_next_machine(store: StoredSharedStages, tmp_path: Path):
    def fail() -> None:
        raise RunError("the machine is gone")

    with pytest.raises(RunError, match="gone"):
        once(store, tmp_path / "a/k", fail)
    assert once(store, tmp_path / "b/k")


def test_a_machine_that_was_away_does_not_replace_the_stage_of_its_follower(store: StoredSharedStages, tmp_path: Path):
    def be_away() -> None:
        place = tmp_path / "bucket/stages/training/k/lease"
        (own,) = place.glob("*.json")
        follower = json.loads(own.read_text()) | {"lease": "another", "host": "follower"}
        (place / "000002.json").write_text(json.dumps(follower))
        time.sleep(2 * RENEWAL)

    with pytest.raises(RunError, match=r"on follower .* took this run over"):
        once(store, tmp_path / "a/k", be_away)
    assert not list((tmp_path / "bucket/stages").glob("complete/*"))


def test_a_list_that_names_another_place_is_refused(store: StoredSharedStages, tmp_path: Path):
    assert once(store, tmp_path / "a/k")
    mark = tmp_path / "bucket/stages/complete/k.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"../../owned": "0"}))
    with pytest.raises(RunError, match="owned"):
        once(store, tmp_path / "b/k")
    assert not (tmp_path / "b/k").exists()
