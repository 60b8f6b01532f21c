"""Stages that all methods share, in a store: of several machines one trains each of them, and the others fetch it.

`<url>/stages/<key>/<id>/` has the files of a finished stage. `<url>/stages/complete/<key>.json` lists them; the
first machine that has the stage writes it last, and it stays. `<url>/stages/training/<key>/` has the lease of the machine that
trains it, and names the runs that have snapshots of it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InUseError, RunError
from harness.rundir.files import DONE, file_digest
from harness.rundir.shared.lease import RENEWAL, VALID, Lease
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
from harness.rundir.shared.stored_snapshots import FOLDER as SNAPSHOTS
from harness.rundir.shared.stored_snapshots import StoredSnapshots
from harness.rundir.stage_folder import StageFolder

FOLDER, NOTE, TRAIN = "stages", "trained_in.json", "train"


@dataclass(frozen=True)
class StoredSharedStages:
    """The shared stages below the folder `root` of an fsspec file system; `url` is the store's name in messages."""

    system: Any
    root: str
    url: str
    valid: float = VALID
    renewal: float = RENEWAL

    @contextmanager
    def trained_once(
        self, key: str, place: Path, announce: Callable[[], object], stop_if_asked: Callable[[], object]
    ) -> Generator[Lease | None]:
        """Yield the lease under which the block has to train the stage into `place`, which is stored afterwards.

        It yields None where `place` has the store's stage in the end: another machine trained it, or it was here already and
        is stored now. While another machine trains it, `announce` and `stop_if_asked` are called again and again; the latter
        raises what ends the wait. Raises `RunError` where the store does not answer for `valid` seconds, and where another
        machine took the stage over, because this one was away.
        """
        with errors_told(f"storage {self.url} takes no lease"):
            lease = Lease(self.system, self._training(key), self.url, self.valid, self.renewal, what="stage")
            leases = lease.is_possible()
        with ExitStack() as held:
            silent_since, waits = None, leases
            while True:
                try:
                    if not (found := self._fetch(key, place)) and waits:
                        held.enter_context(lease.held(lambda _: announce()))
                        waits = False  # a process would wait for its own lease
                        found = self._fetch(key, place)
                    break
                except InUseError:
                    silent_since = None
                except DamagedFolderError as error:
                    remedy = f"remove {self._list(key)} there, and a machine that lacks the stage makes it again"
                    raise RunError(f"{error}; {remedy}") from error
                except RunError:
                    silent_since = silent_since or time.monotonic()
                    if time.monotonic() - silent_since > self.valid:
                        raise
                    time.sleep(self.renewal)
                stop_if_asked()
            yield None if StageFolder(place).training_done is not None else lease
            if not found:
                self._put(key, place, lease)

    def begin(self, key: str, run: str, stage: str, train: Path, warn: Callable[[str], object]) -> None:
        """Note that a run trains the stage; `train` gets the newest snapshot of the runs that did so before.

        `run` and `stage` are the names of their folders in the store.
        """
        own, note = f"{run}/{SNAPSHOTS}/{stage}", f"{self._training(key)}/{NOTE}"
        with errors_told(f"storage {self.url} does not give the stages that methods share"):
            places = read_list(self.system, note) or {}
            for place in places.keys() - {own}:
                try:
                    # Since the note was written, that run may have begun another stage of this name.
                    if read_list(self.system, f"{self.root}/{place}/{NOTE}") == {"key": key}:
                        StoredSnapshots(self.system, f"{self.root}/{place}", self.url).fetch(train, warn)
                except Exception as error:  # each kind of store has errors of its own
                    warn(
                        f"storage {self.url} does not give the snapshots in {place}, so it goes on without them ({error})"
                    )
            write_list(self.system, note, {**places, own: key})
            write_list(self.system, f"{self.root}/{own}/{NOTE}", {"key": key})

    def _training(self, key: str) -> str:
        return f"{self.root}/{FOLDER}/training/{key}"

    def _list(self, key: str) -> str:
        return f"{self.root}/{FOLDER}/complete/{key}.json"

    def _listed(self, key: str) -> tuple[str, dict[str, str]] | None:
        """Return the folder of a stored stage, and its files with their digests; None where the store lacks it."""
        self.system.invalidate_cache()
        if not (files := read_list(self.system, self._list(key))):
            return None
        folder = next(iter(files)).partition("/")[0]
        return folder, {name.removeprefix(f"{folder}/"): value for name, value in files.items()}

    def _fetch(self, key: str, place: Path) -> bool:
        """Return whether the store has the stage, after putting it into `place` unless that has it already."""
        with errors_told(f"storage {self.url} does not give the stages that methods share"):
            if (listed := self._listed(key)) is None:
                return False
            folder, files = listed
            if wrong := [name for name in files if not is_inside(place, name) or not name.startswith(f"{TRAIN}/")]:
                raise DamagedFolderError(f"storage {self.url} lists {wrong[0]!r}, which is no file of a stage")
            here = StageFolder(place).training_done is not None and file_digest(place / TRAIN / DONE)
            if here != files.get(f"{TRAIN}/{DONE}"):
                fetch_folder(self.system, f"{self.root}/{FOLDER}/{key}/{folder}", files, place, self.url)
        return True

    def _put(self, key: str, place: Path, lease: Lease) -> None:
        """Store the stage in `place`, unless another machine was first: then `place` gets that one's."""
        with errors_told(f"storage {self.url} does not take a stage that methods share"):
            lease.refuse_lost()
            folder, files = uuid.uuid4().hex[:8], files_in(place / TRAIN)
            for name in files:
                put_file(self.system, place / TRAIN / name, f"{self.root}/{FOLDER}/{key}/{folder}/{TRAIN}/{name}")
            lease.refuse_lost()
            if self._fetch(key, place):
                self.system.rm(f"{self.root}/{FOLDER}/{key}/{folder}", recursive=True)
                return
            write_list(
                self.system, self._list(key), {f"{folder}/{TRAIN}/{name}": value for name, value in files.items()}
            )
            with suppress(FileNotFoundError):
                self.system.rm_file(f"{self._training(key)}/{NOTE}")
