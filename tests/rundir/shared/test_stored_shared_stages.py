"""Stages that all methods share, in a store: of several machines one trains each of them, and the others fetch it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch

from harness.errors import RunError, StoppedError
from harness.rundir.files import SNAPSHOT, write_sealed
from harness.rundir.records.training_records import DoneFile
from harness.rundir.shared.lease import Lease
from harness.rundir.shared.stored_shared_stages import StoredSharedStages
from harness.rundir.shared.stored_snapshots import StoredSnapshots
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
    with store.trained_once("k", place, lambda: None, lambda: None) as lease:
        if lease is not None:
            work()
            train(place, place.parent.name)
    return lease is not None


def weights(place: Path) -> str:
    return (place / "train/checkpoint/model.safetensors").read_text()


def test_the_second_machine_fetches_what_the_first_one_trained(store: StoredSharedStages, tmp_path: Path):
    assert once(store, tmp_path / "a/k")
    assert not once(store, tmp_path / "b/k")
    assert StageFolder(tmp_path / "b/k").training_done == StageFolder(tmp_path / "a/k").training_done
    assert weights(tmp_path / "b/k") == "a"


def test_a_machine_waits_for_another_one_that_trains(store: StoredSharedStages, tmp_path: Path):
    begun, waited = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert waited.wait(60)

    trained: list[bool] = []
    other = threading.Thread(target=lambda: trained.append(once(store, tmp_path / "a/k", work)))
    other.start()
    assert begun.wait(60)
    with store.trained_once("k", tmp_path / "b/k", waited.set, lambda: None) as lease:
        assert lease is None
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

    with pytest.raises(RunError, match=r"on follower .* took this stage over"):
        once(store, tmp_path / "a/k", be_away)
    assert not list((tmp_path / "bucket/stages").glob("complete/*"))


def test_a_list_that_names_another_place_is_refused(store: StoredSharedStages, tmp_path: Path):
    assert once(store, tmp_path / "a/k")
    mark = tmp_path / "bucket/stages/complete/k.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"../../owned": "0"}))
    with pytest.raises(RunError, match="owned"):
        once(store, tmp_path / "b/k")
    assert not (tmp_path / "b/k").exists()


def test_a_stage_whose_upload_failed_is_stored_by_the_next_run_on_that_machine(
    store: StoredSharedStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError("no route to the store")

    with monkeypatch.context() as patch:
        patch.setattr("harness.rundir.shared.stored_shared_stages.put_file", fail)
        with pytest.raises(RunError, match="no route"):
            once(store, tmp_path / "a/k")
    assert not once(store, tmp_path / "a/k"), "it is trained already"
    assert not once(store, tmp_path / "b/k")
    assert weights(tmp_path / "b/k") == "a"


def test_without_leases_the_first_machine_decides_the_stage(
    store: StoredSharedStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Lease, "is_possible", lambda _: False)
    assert once(store, tmp_path / "a/k", lambda: once(store, tmp_path / "b/k"))
    assert weights(tmp_path / "a/k") == weights(tmp_path / "b/k") == "b"
    assert len([path for path in (tmp_path / "bucket/stages/k").iterdir() if any(path.rglob("*.safetensors"))]) == 1


def test_a_wait_outlives_a_store_that_is_away_for_a_while(
    store: StoredSharedStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert once(store, tmp_path / "a/k")
    real, left = StoredSharedStages._listed, [3]

    def flaky(self: StoredSharedStages, key: str) -> object:
        left[0] -= 1
        if left[0] > 0:
            raise OSError("slow down")
        return real(self, key)

    monkeypatch.setattr(StoredSharedStages, "_listed", flaky)
    assert not once(store, tmp_path / "b/k")
    left[0] = 10**6
    with pytest.raises(RunError, match="slow down"):
        once(replace(store, valid=2 * RENEWAL), tmp_path / "c/k")


def test_a_damaged_stage_is_refused_with_what_to_remove(store: StoredSharedStages, tmp_path: Path):
    assert once(store, tmp_path / "a/k")
    (file,) = (tmp_path / "bucket/stages/k").rglob("*.safetensors")
    file.write_text("other")
    with pytest.raises(RunError, match=r"remove .*/stages/complete/k\.json there"):
        once(store, tmp_path / "b/k")
    (tmp_path / "bucket/stages/complete/k.json").unlink()
    assert once(store, tmp_path / "b/k")


def test_snapshots_of_all_runs_that_trained_the_stage_are_looked_at(store: StoredSharedStages, tmp_path: Path):
    def note(run: str, key: str = "k") -> Path:
        folder = tmp_path / "machine" / run
        store.begin(key, run, "stage_1_sums", folder, pytest.fail)
        return folder

    def keep(run: str, step: int) -> None:
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        torch.save({"step": step}, tmp_path / "snapshot" / SNAPSHOT)
        place = f"{store.root}/{run}/snapshots/stage_1_sums"
        StoredSnapshots(store.system, place, store.url).put(step, tmp_path / "snapshot")

    note("opd")
    keep("opd", 50)
    assert (note("sft") / SNAPSHOT).is_file()
    assert (note("none") / SNAPSHOT).is_file(), "sft was lost before its first upload"
    note("opd", key="another")
    assert not (note("aopd") / SNAPSHOT).is_file(), "opd has begun another stage since"


def test_a_store_that_is_away_after_the_lease_does_not_keep_the_stage_from_its_holder(
    store: StoredSharedStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, looks = StoredSharedStages._listed, list[int]()

    def flaky(self: StoredSharedStages, key: str) -> object:
        looks.append(1)
        if len(looks) == 2:
            raise OSError("slow down")
        return real(self, key)

    monkeypatch.setattr(StoredSharedStages, "_listed", flaky)
    assert once(store, tmp_path / "a/k")
    assert len(looks) > 2
