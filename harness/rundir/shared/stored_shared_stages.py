"""Stages that all methods share, in a store: of several machines one trains each of them, and the others fetch it.

`<url>/stages/<key>/` has the files of a finished stage, `<url>/stages/complete/<key>.json` the list of them, which is written
last, and `<url>/stages/training/<key>/` the lease of the machine that trains it and the place of its snapshots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InUseError, RunError
from harness.rundir.shared.lease import RENEWAL, VALID, Lease
from harness.rundir.shared.listed_folders import errors_told, fetch_folder, is_inside, put_folder, read_list
from harness.rundir.shared.stored_snapshots import FOLDER as SNAPSHOTS
from harness.rundir.shared.stored_snapshots import StoredSnapshots
from harness.rundir.stage_folder import StageFolder

FOLDER = "stages"


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
    ) -> Generator[bool]:
        """Yield True where the block has to train the stage and to leave it in `place`, which is stored afterwards.

        Otherwise `place` has the stage that another machine trained. While that machine trains it, `announce` and
        `stop_if_asked` are called again and again; the latter raises what ends the wait. Raises `RunError` where the store
        does not answer, and where another machine took the stage over, because this one was away.
        """
        while not self._fetch(key, place):
            lease = Lease(self.system, self._training(key), self.url, self.valid, self.renewal)
            with ExitStack() as held:
                try:
                    # Where the store has no leases, each machine may train the stage, as it may do the run.
                    held.enter_context(lease.held(lambda _: announce()) if lease.is_possible() else nullcontext())
                except InUseError:
                    stop_if_asked()
                    continue
                if self._fetch(key, place):
                    break
                yield True
                lease.refuse_lost()
                self._put(key, place)
                return
        yield False

    def begin(self, key: str, run: str, stage: str, train: Path, warn: Callable[[str], object]) -> None:
        """Note which run trains the stage; without a snapshot, `train` gets the newest one of the run noted before.

        `run` and `stage` are the names of their folders in the store.
        """
        note = f"{self._training(key)}/trained_in.json"
        with errors_told(f"storage {self.url} does not give the stages that methods share"):
            if (before := read_list(self.system, note)) is not None and (before["run"], before["stage"]) != (
                run,
                stage,
            ):
                place = f"{self.root}/{before['run']}/{SNAPSHOTS}/{before['stage']}"
                StoredSnapshots(self.system, place, self.url).fetch(train, warn)
            self.system.makedirs(self._training(key), exist_ok=True)
            self.system.pipe_file(note, json.dumps({"run": run, "stage": stage}).encode())

    def _training(self, key: str) -> str:
        return f"{self.root}/{FOLDER}/training/{key}"

    def _list(self, key: str) -> str:
        return f"{self.root}/{FOLDER}/complete/{key}.json"

    def _fetch(self, key: str, place: Path) -> bool:
        """Return whether the stage is in `place`, after fetching it where the store has it whole."""
        if StageFolder(place).training_done is not None:
            return True
        with errors_told(f"storage {self.url} does not give the stages that methods share"):
            self.system.invalidate_cache()
            if (files := read_list(self.system, self._list(key))) is None:
                return False
            if wrong := [name for name in files if not is_inside(place, name)]:
                raise RunError(
                    f"{self._list(key)} in storage {self.url} lists {wrong[0]!r}, which is no file of a stage"
                )
            fetch_folder(self.system, f"{self.root}/{FOLDER}/{key}", files, place, self.url)
        return True

    def _put(self, key: str, place: Path) -> None:
        with errors_told(f"storage {self.url} does not take a stage that methods share"):
            put_folder(self.system, place, f"{self.root}/{FOLDER}/{key}", self._list(key))
