"""Snapshots of a stage in progress in a store: a lost machine costs the steps since the last one, not the stage.

`<run>/snapshots/<stage>/<step>-<id>/` holds a snapshot and the logs up to its step, and `<step>-<id>.json` the list of these
files, which is written last. Earlier snapshots are removed after that, and the last one when the store has the finished stage.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import RunError
from harness.rundir.files import SNAPSHOT
from harness.rundir.shared.lease import Lease
from harness.rundir.shared.listed_folders import (
    DamagedFolderError,
    errors_told,
    fetch_folder,
    files_in,
    is_inside,
    put_file,
    read_list,
    write_list,
)
from harness.rundir.training.snapshots import snapshot_step

FOLDER = "snapshots"
NAME = re.compile(r"(\d{8,12})-[0-9a-f]{8}")


class LostLeaseError(RunError):
    """Another machine has taken the run over."""


@dataclass(frozen=True)
class StoredSnapshots:
    """The snapshots of one stage in the folder `place` of an fsspec file system; `url` is the store's name in messages."""

    system: Any
    place: str
    url: str
    leases: tuple[Lease, ...] = ()

    def put(self, step: int, folder: Path) -> None:
        """Store the files of a folder as the snapshot before `step`, and remove earlier ones.

        Raises `LostLeaseError` where another machine has taken the run over, and what the store raises.
        """
        self._refuse_lost()
        name = f"{step:08d}-{uuid.uuid4().hex[:8]}"
        files = files_in(folder)
        for file in files:
            put_file(self.system, folder / file, f"{self.place}/{name}/{file}")
        self._refuse_lost()
        write_list(self.system, f"{self.place}/{name}.json", files)
        for other in self._names():
            # A machine that lost its lease while it wrote this list never removes the later snapshot of its follower.
            if other != name and _step_of(other) <= step:
                self._remove(other)

    def fetch(self, train: Path, warn: Callable[[str], object]) -> None:
        """Put the newest snapshot in place of a `train` folder that has none, or an earlier one.

        `warn` gets a sentence about each damaged snapshot; the one before it is taken. Raises `RunError` where the store does
        not answer.
        """
        here = snapshot_step(train)
        with errors_told(f"storage {self.url} does not give the snapshots of {train.parent}"):
            for name in sorted(self._names(), reverse=True):
                if here is not None and _step_of(name) <= here:
                    return
                files = read_list(self.system, f"{self.place}/{name}.json")
                if files is None:  # its upload was not finished
                    continue
                if SNAPSHOT not in files or not all(is_inside(train, file) for file in files):
                    warn(f"{self.place}/{name}.json in storage {self.url} is not the list of a snapshot; {_WITHOUT}")
                    continue
                try:
                    fetch_folder(self.system, f"{self.place}/{name}", files, train, self.url)
                    return
                except DamagedFolderError as error:
                    warn(f"{error}; {_WITHOUT}")

    def remove(self) -> None:
        """Remove all snapshots of the stage."""
        if self.system.exists(self.place):
            self.system.rm(self.place, recursive=True)

    def _names(self) -> set[str]:
        """Return the names of all snapshots of which there is anything."""
        self.system.invalidate_cache()
        try:
            found = [str(path).rstrip("/").rpartition("/")[2] for path in self.system.ls(self.place, detail=False)]
        except FileNotFoundError:
            return set()
        return {name for each in found if NAME.fullmatch(name := each.removesuffix(".json"))}

    def _remove(self, name: str) -> None:
        for path in (f"{self.place}/{name}.json", f"{self.place}/{name}"):
            with suppress(FileNotFoundError):
                self.system.rm(path, recursive=True)

    def _refuse_lost(self) -> None:
        try:
            for lease in self.leases:
                lease.refuse_lost()
        except RunError as error:
            raise LostLeaseError(str(error)) from error


_WITHOUT = "the stage continues from an earlier snapshot, or begins again where there is none"


def _step_of(name: str) -> int:
    return int(name.partition("-")[0])
