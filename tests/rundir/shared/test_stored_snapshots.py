"""Snapshots of a stage in a store: whole or not there, the newest one counts, and a failing store never ends a training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from harness.errors import RunError
from harness.rundir.shared.lease import Lease
from harness.rundir.shared.remote_stages import RemoteStages
from harness.rundir.shared.snapshot_uploads import SnapshotUploads
from harness.rundir.shared.stored_snapshots import StoredSnapshots
from harness.rundir.stage_folder import StageFolder
from harness.rundir.training.shards import write_shards
from harness.rundir.training.snapshots import FileSnapshots, StopRequest, snapshot_step
from tests.support.servers.s3 import bucket


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    if request.param == "s3":
        with bucket() as url:
            yield url
    else:
        yield f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/bucket"


def stored(url: str, lease: Lease | None = None) -> StoredSnapshots:
    system, root = fsspec.core.url_to_fs(url)
    return StoredSnapshots(system, f"{root}/snapshots/stage_1_sums", url, (lease,) if lease else ())


def training(folder: Path, *steps: int, uploads: SnapshotUploads | None = None) -> Path:
    """A `train` folder after these steps, with a snapshot after the last one."""
    train = folder / "stage_1_sums" / "train"
    train.mkdir(parents=True, exist_ok=True)
    snapshots = FileSnapshots(train, 0, uploads=uploads)
    for step in steps:
        with (train / "steps.jsonl").open("a") as log:
            log.write(f'{{"step": {step - 1}}}\n')
        snapshots.keep(step, {"student": torch.full((3,), float(step))})
    return train


def names(url: str) -> list[str]:
    store = stored(url)
    paths = store.system.find(store.place) if store.system.exists(store.place) else []
    return sorted(str(path).partition("stage_1_sums/")[2] for path in paths)


def no_warning(sentence: str) -> None:
    raise AssertionError(sentence)


def fetched(url: str, folder: Path, warn: Callable[[str], object] = no_warning) -> int | None:
    """Fetch into a train folder; return the step at which its stage continues."""
    train = folder / "stage_1_sums" / "train"
    stored(url).fetch(train, warn)
    state = FileSnapshots(train, 0).load()
    assert not list(train.parent.glob(".*"))
    return None if state is None else int(state["step"])


def test_another_machine_continues_from_the_newest_snapshot(url: str, tmp_path: Path):
    assert fetched(url, tmp_path / "nothing") is None
    train = training(tmp_path / "here", 1, 2)
    stored(url).put(2, train)
    assert fetched(url, tmp_path / "there") == 2
    assert (tmp_path / "there/stage_1_sums/train/steps.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'
    stored(url).put(3, training(tmp_path / "here", 3))
    assert {name[:8] for name in names(url)} == {"00000003"}, "the earlier one is removed"
    assert fetched(url, tmp_path / "there") == 3
    stored(url).remove()
    assert names(url) == []


def test_the_runs_own_snapshot_stays_where_it_is_as_new(url: str, tmp_path: Path):
    stored(url).put(2, training(tmp_path / "here", 1, 2))
    training(tmp_path / "here", 3)
    assert fetched(url, tmp_path / "here") == 3


def test_half_a_snapshot_is_never_read(url: str, tmp_path: Path):
    stored(url).put(2, training(tmp_path / "here", 1, 2))
    store = stored(url)
    listed = store.system.cat_file(f"{store.place}/{names(url)[0].partition('/')[0].removesuffix('.json')}.json")
    store.system.makedirs(f"{store.place}/00000005-0123abcd", exist_ok=True)
    store.system.pipe_file(f"{store.place}/00000005-0123abcd/snapshot.pt", b"half")
    assert fetched(url, tmp_path / "no list") == 2
    store.system.pipe_file(f"{store.place}/00000005-0123abcd.json", listed[: len(listed) // 2])
    assert fetched(url, tmp_path / "half a list") == 2
    stored(url).put(6, training(tmp_path / "here", 3, 4, 5, 6))
    assert {name[:8] for name in names(url)} == {"00000006"}, "what was left of it is removed"


def test_a_damaged_snapshot_is_named_and_the_one_before_is_taken(url: str, tmp_path: Path):
    stored(url).put(2, training(tmp_path / "here", 1, 2))
    store, warnings = stored(url), list[str]()
    kept = {name: store.system.cat_file(f"{store.place}/{name}") for name in names(url)}
    stored(url).put(3, training(tmp_path / "here", 3))
    for name, content in kept.items():
        store.system.makedirs(f"{store.place}/{name}".rpartition("/")[0], exist_ok=True)
        store.system.pipe_file(f"{store.place}/{name}", content)
    (newest,) = (name for name in names(url) if name.startswith("00000003") and name.endswith("snapshot.pt"))
    store.system.pipe_file(f"{store.place}/{newest}", b"other")
    assert fetched(url, tmp_path / "there", warnings.append) == 2
    assert len(warnings) == 1
    assert newest in warnings[0]
    for name in kept:
        if name.endswith("snapshot.pt"):
            store.system.rm_file(f"{store.place}/{name}")
    assert fetched(url, tmp_path / "third", warnings.append) is None
    assert len(warnings) == 3, "the stage begins again, with a sentence about each"


@pytest.mark.parametrize("name", ["../../evil", "/evil", "..", "."])
def test_a_list_never_names_a_place_outside_of_the_stage(tmp_path: Path, name: str):
    store, warnings = stored(f"file://{tmp_path}/bucket"), list[str]()
    store.system.makedirs(store.place)
    store.system.pipe_file(f"{store.place}/00000001-0123abcd.json", f'{{"snapshot.pt": "0", "{name}": "0"}}'.encode())
    assert fetched(store.url, tmp_path / "here", warnings.append) is None
    assert "not the list of a snapshot" in warnings[0]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_of_several_processes_are_stored_with_their_snapshot(url: str, tmp_path: Path):
    train = training(tmp_path / "here", 1)
    write_shards(train / "shards-2", {"student": {"weight": torch.arange(4.0)}})
    (train / "shards-1").mkdir()
    (train / "shards-1" / "earlier").write_text("it is about to be removed")
    uploads = SnapshotUploads(stored(url), train, no_warning)
    FileSnapshots(train, 0, uploads=uploads).keep(2, {"shards": "shards-2"})
    uploads.wait()
    there = tmp_path / "there" / "stage_1_sums" / "train"
    stored(url).fetch(there, no_warning)
    state = FileSnapshots(there, 0).load()
    assert state is not None
    assert torch.equal(state["student"]["weight"], torch.arange(4.0))
    assert not (there / "shards-1").exists()


class SlowSystem(LocalFileSystem):
    """Copies a file when it is let, and counts who copies at once."""

    cachable = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.go, self.begun = threading.Event(), threading.Event()

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self.begun.set()
        assert self.go.wait(30)
        super().put_file(*arguments, **options)


def test_training_does_not_wait_and_the_newest_snapshot_goes_next(tmp_path: Path):
    system = SlowSystem()
    puts: list[int] = []

    class Counting(StoredSnapshots):
        def put(self, step: int, folder: Path) -> None:
            puts.append(step)
            assert snapshot_step(folder) == step, "the files are those of this snapshot"
            assert len((folder / "steps.jsonl").read_text().splitlines()) == step
            super().put(step, folder)

    store = Counting(system, f"{tmp_path}/bucket", "slow")
    train = tmp_path / "stage_1_sums" / "train"
    uploads = SnapshotUploads(store, train, no_warning)
    training(tmp_path, 1, uploads=uploads)
    assert system.begun.wait(30)
    training(tmp_path, 2, 3, 4, uploads=uploads)
    system.go.set()
    uploads.wait()
    assert puts == [1, 4]
    assert not list(train.glob(".upload*"))


def test_a_store_that_fails_is_a_warning_and_the_next_snapshot_is_tried(tmp_path: Path):
    bucket, warnings = tmp_path / "bucket", list[str]()
    bucket.write_text("a file where a folder should be")
    uploads = SnapshotUploads(stored(f"file://{bucket}"), tmp_path / "stage_1_sums" / "train", warnings.append)
    for step in (1, 2):
        training(tmp_path, step, uploads=uploads)
        uploads.wait()
    assert len(warnings) == 1, "once until it works again"
    assert f"file://{bucket}" in warnings[0]
    assert snapshot_step(tmp_path / "stage_1_sums" / "train") == 2
    bucket.unlink()
    training(tmp_path, 3, uploads=uploads)
    uploads.wait()
    assert fetched(f"file://{bucket}", tmp_path / "there") == 3


def test_a_machine_that_lost_the_lease_stores_nothing_and_stops(tmp_path: Path):
    url = f"file://{tmp_path}/bucket"
    system, root = fsspec.core.url_to_fs(url)
    mine, later = (Lease(system, root, url, valid=0.3, renewal=100, machine=name) for name in ("here", "elsewhere"))
    uploads = SnapshotUploads(stored(url, mine), tmp_path / "stage_1_sums" / "train", no_warning)
    with mine.held(lambda _: None), later.held(lambda _: None):
        train = training(tmp_path, 1, uploads=uploads)
        with pytest.raises(RunError, match="took this run over"):
            uploads.wait()
        with pytest.raises(RunError, match="took this run over"):
            FileSnapshots(train, 60, uploads=uploads).offer(2, dict)
    assert names(url) == []


def test_a_late_list_of_a_lost_owner_removes_no_later_snapshot(url: str, tmp_path: Path):
    stored(url).put(5, training(tmp_path / "here", 5))
    stored(url).put(2, training(tmp_path / "late", 2))
    assert fetched(url, tmp_path / "there") == 5


def test_a_signal_waits_until_the_store_has_the_snapshot(url: str, tmp_path: Path):
    train = tmp_path / "stage_1_sums" / "train"
    train.mkdir(parents=True)
    stop = StopRequest("SIGTERM")
    uploads = SnapshotUploads(stored(url), train, no_warning)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM before step 3"):
        FileSnapshots(train, 60, stop=stop, uploads=uploads).offer(3, dict)
    assert fetched(url, tmp_path / "there") == 3


def test_a_finished_stage_in_the_store_has_no_snapshots(url: str, tmp_path: Path):
    run = tmp_path / "here/suite/opd/default/seed0"
    remote, folder = RemoteStages(url, run, tmp_path / "here"), StageFolder(run / "stage_1_sums")
    train = training(run, 1)
    uploads = remote.uploads(folder, no_warning)
    assert uploads is not None
    FileSnapshots(train, 0, uploads=uploads).keep(2, {})
    uploads.drop()
    other = tmp_path / "there/suite/opd/default/seed0"
    RemoteStages(url, other, tmp_path / "there").fetch_snapshot(StageFolder(other / "stage_1_sums"), no_warning)
    assert snapshot_step(other / "stage_1_sums" / "train") in (None, 2), "whole or not there"
    (train / "done.json").write_text("{}")
    remote.put(folder)
    system, root = fsspec.core.url_to_fs(f"{url}/suite/opd/default/seed0")
    assert not system.exists(f"{root}/snapshots/stage_1_sums")
    assert system.exists(f"{root}/complete/stage_1_sums.json")
