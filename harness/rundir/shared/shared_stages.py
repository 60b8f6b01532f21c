"""Trained stages shared between runs: a stage that the suite gives an adapter of its own is trained once for all methods."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from harness.rundir.files import SNAPSHOT, link_or_copy, read_json, sync_tree, write_json
from harness.rundir.locks import waiting_lock
from harness.rundir.records.training_records import DoneFile
from harness.rundir.stage_folder import StageFolder

SHARED = "shared.json"  # file of an unfinished stage in a run, with its key


class SharedStages:
    """Stages' `train` folders under `<folder>/stages/`, named by the digest of all that decides the weights.

    A run directory holds the same files: hard links where the file system has them, so that they take no further room, else
    copies. Nobody writes to a finished stage's files, so no run changes another's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "stages"

    def locked(self, key: str, announce: Callable[[], object]) -> AbstractContextManager[None]:
        """Return the lock on a stage: of several runs that come to it, one trains it and the others wait, after `announce`."""
        return waiting_lock(self.folder / f"{key}.lock", announce)

    def take(self, key: str, stage: StageFolder) -> DoneFile | None:
        """Put the stage with this key into a run, in place of an unfinished training; None where nobody trained it yet.

        What a killed process left of it is removed. The caller holds the lock.
        """
        for partial in [*self.folder.glob(f".{key}.*"), *(self.folder / key).glob(".train.*")]:
            shutil.rmtree(partial, ignore_errors=True)
        if StageFolder(self.folder / key).training_done is None:
            return None
        _link(self.folder / key / "train", stage.path / "train")
        return stage.training_done

    def place(self, key: str) -> Path:
        """Return the folder of a finished stage's `train` folder."""
        return self.folder / key

    def begin(self, key: str, stage: StageFolder) -> None:
        """Note that a run trains the stage, after moving the snapshot of the run that did so before it was interrupted.

        A snapshot of the run's own stays. The caller holds the lock, so the other run does not use its folder.
        """
        note, train = self.folder / f"{key}.json", stage.path / "train"
        stage.path.mkdir(parents=True, exist_ok=True)
        if not (train / SNAPSHOT).is_file() and (former := self._former(key, note)) is not None:
            shutil.rmtree(train, ignore_errors=True)
            former.rename(train)
        write_json(stage.path / SHARED, key)
        write_json(note, {"trained_in": stage.path.relative_to(self.folder.parent).as_posix()})

    def _former(self, key: str, note: Path) -> Path | None:
        """Return the `train` folder that the note names if it has a snapshot of this key's stage."""
        if (noted := read_json(note)) is None:
            return None
        folder = self.folder.parent / str(noted["trained_in"])
        # Since the note was written, that run may have been replaced by one of another configuration.
        same = read_json(folder / SHARED) == key and (folder / "train" / SNAPSHOT).is_file()
        return folder / "train" if same else None

    def is_due(self, key: str, stage: StageFolder) -> bool:
        """Return whether a run trained the stage under this key, and ended before it was kept for others."""
        return read_json(stage.path / SHARED) == key

    def put(self, key: str, stage: StageFolder) -> None:
        """Keep a run's finished stage for others."""
        for note in (stage.path / SHARED, self.folder / f"{key}.json"):
            note.unlink(missing_ok=True)
        if StageFolder(self.folder / key).training_done is None:
            _link(stage.path / "train", self.folder / key / "train")


def _link(source: Path, target: Path) -> None:
    """Make `target` a tree of links to the files of `source`; it appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=link_or_copy)
    sync_tree(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
