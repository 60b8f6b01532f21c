"""Upload the snapshots of a stage to a store while it trains, in a thread: one at a time, and the newest one next."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from harness.rundir.shared.stored_snapshots import LostLeaseError, StoredSnapshots
from harness.rundir.training.snapshots import copy_snapshot

PATIENCE = 5.0  # seconds of waiting without a word


class SnapshotUploads:
    """Uploads of the snapshots in a stage's `train` folder. See `harness.rundir.training.snapshots.Uploads`.

    A failed upload is a warning, and the next snapshot is uploaded again. Messages of the thread reach `warn` in the thread
    that trains.
    """

    def __init__(self, store: StoredSnapshots, train: Path, warn: Callable[[str], object]) -> None:
        self.store, self.train, self.warn = store, train, warn
        self._guard = threading.Lock()
        self._next: tuple[int, Path] | None = None
        self._thread: threading.Thread | None = None
        self._messages: list[str] = []
        self._fails = False
        self._lost: LostLeaseError | None = None

    def offer(self, step: int) -> None:
        """Upload the snapshot before `step` when no other one is being uploaded; it replaces one that waits."""
        copied = copy_snapshot(self.train, step)
        with self._guard:
            replaced, self._next = self._next, (step, copied)
            if self._thread is None:
                self._thread = threading.Thread(target=self._upload, name="snapshot upload", daemon=True)
                self._thread.start()
        if replaced is not None:
            shutil.rmtree(replaced[1], ignore_errors=True)

    def check(self) -> None:
        """Warn of uploads that failed; raises `LostLeaseError` where another machine has taken the run over."""
        while self._messages:
            self.warn(self._messages.pop(0))
        if self._lost is not None:
            raise self._lost

    def wait(self) -> None:
        """Wait until the store has the last snapshot, or did not take it."""
        thread = self._thread
        if thread is not None:
            thread.join(PATIENCE)
            if thread.is_alive():
                self.warn(f"waiting until storage {self.store.url} has the last snapshot of {self.train.parent.name}")
                thread.join()
        self.check()

    def drop(self) -> None:
        """Upload no further snapshot of a finished stage, and wait for the one on its way."""
        with self._guard:
            waiting, self._next = self._next, None
        if waiting is not None:
            shutil.rmtree(waiting[1], ignore_errors=True)
        self.wait()

    def _upload(self) -> None:
        while (item := self._take()) is not None:
            step, copied = item
            try:
                self.store.put(step, copied)
                self._fails = False
            except LostLeaseError as error:
                self._lost = error
            except Exception as error:  # each kind of store has errors of its own
                if not self._fails:
                    self._messages.append(
                        f"storage {self.store.url} does not take the snapshot before step {step} of "
                        f"{self.train.parent.name} ({type(error).__name__}: {error}); training goes on, and the next "
                        "snapshot is tried again"
                    )
                self._fails = True
            finally:
                shutil.rmtree(copied, ignore_errors=True)

    def _take(self) -> tuple[int, Path] | None:
        with self._guard:
            item, self._next = self._next, None
            if item is None:
                self._thread = None
            return item
