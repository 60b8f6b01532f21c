"""A lease on a run in a store: machines that share nothing but the store do not do one run twice.

Leases are numbered files, `<run>/lease/000001.json`, and the highest number holds. A file is created only where there is none
(`open(mode="xb")`), so one of several processes gets the next number. Its owner alone rewrites it, every few seconds. A lease
has ended when a process that watches it has not seen it change for `valid` seconds; no two clocks are compared. An owner that
was away for so long finds a higher number, and stops.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import psutil

from harness.errors import InUseError, RunError
from harness.rundir.schema import now
from harness.rundir.shared.listed_folders import errors_told

FOLDER = "lease"
VALID, RENEWAL = 90.0, 15.0  # seconds


@dataclass(frozen=True)
class StoredLease:
    """The lease with the highest number, as it is stored; `content` is empty while its owner writes it."""

    number: int
    content: dict[str, Any]

    @property
    def owner(self) -> str:
        """Who holds it, for messages."""
        known = self.content
        return f"process {known.get('process')} on {known.get('host')} (since {known.get('since')})"


class Lease:
    """A lease on the folder `root` of an fsspec file system; `url` is the store's name in messages.

    `what` is leased, for messages. `machine` names this machine and its process ids: an owner with the same one that is gone
    need not be waited for.
    """

    def __init__(
        self,
        system: Any,
        root: str,
        url: str,
        valid: float = VALID,
        renewal: float = RENEWAL,
        machine: str = "",
        what: str = "run",
    ) -> None:
        self.system, self.folder, self.url = system, f"{root}/{FOLDER}", url
        self.valid, self.renewal, self.what = valid, renewal, what
        self.identity = {
            "lease": uuid.uuid4().hex, "host": platform.node(), "process": os.getpid(), "machine": machine or _this_machine(),
            "started": psutil.Process().create_time(), "since": now(),
        }  # fmt: skip
        self.number = 0

    @contextmanager
    def held(self, warn: Callable[[str], object]) -> Generator[None]:
        """Hold the lease in the block; `warn` gets a sentence where that takes a while, or where the store has no leases.

        Raises `InUseError` where another process renews it, and `RunError` where the store does not answer.
        """
        with errors_told(f"storage {self.url} takes no lease"):
            if self.is_possible():
                self._acquire(warn)
            else:
                warn(
                    f"storage {self.url} cannot create a file only where there is none, so nothing keeps two machines from "
                    f"doing this {self.what} at once; start each run from one place"
                )
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(ended,), name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._release()

    def is_possible(self) -> bool:
        """Return whether the store refuses to create a file that exists.

        Tests this with a temporary file.
        """
        path = f"{self.folder}/try-{uuid.uuid4().hex}"
        self.system.makedirs(self.folder, exist_ok=True)
        try:
            _create_exclusively(self.system, path, b"first")
        except Exception:  # stores that do not know the mode say so in many ways
            # A store that is asked again after a time-out refuses what the first try has created.
            if not (self.system.exists(path) and self.system.cat_file(path) == b"first"):
                self.system.pipe_file(path, b"none")  # raises where the store takes no file at all
        with suppress(Exception):
            _create_exclusively(self.system, path, b"second")
        try:
            return bool(self.system.cat_file(path) == b"first")
        finally:
            self.system.rm_file(path)

    def refuse_lost(self) -> None:
        """Raise `RunError` where another process has taken the lease since, as after a long pause of this one."""
        if self.number and (found := self._newest()) is not None and not self._is_own(found):
            raise RunError(
                f"storage {self.url}: {found.owner} took this {self.what} over, since this process had not renewed its lease "
                f"for {self.valid:g} seconds; this process stops, and the other one goes on"
            )

    def _acquire(self, warn: Callable[[str], object]) -> None:
        watched, since = None, time.monotonic()
        while True:
            found = self._newest()
            ended = found is None or found.content.get("released") or self._owner_is_gone(found)
            if ended or (found == watched and time.monotonic() - since > self.valid):
                if self._create(number := found.number + 1 if found else 1):
                    self.number = number
                    return self._remove_below(number)
            elif watched is None and found is not None:
                watched, since = found, time.monotonic()
                warn(
                    f"storage {self.url} names {found.owner} for this {self.what}; waiting up to "
                    f"{self.valid:g} s for a sign of it"
                )
            elif found is not None and found != watched:
                raise InUseError(
                    f"{found.owner} does this {self.what}, as storage {self.url} says; wait for it, or "
                    "end it and start again"
                )
            time.sleep(min(1.0, self.renewal / 4))

    def _renew(self, ended: threading.Event) -> None:
        while self.number and not ended.wait(self.renewal):
            # Where the store does not answer, whoever waits sees no renewal, and this process may find a higher number later.
            # Each kind of store has errors of its own.
            with suppress(Exception):
                if (found := self._newest()) is not None and not self._is_own(found):
                    return
                self.system.pipe_file(self._path(self.number), self._content())

    def _release(self) -> None:
        with suppress(Exception):  # then it ends by itself after `valid` seconds
            if self.number and (found := self._newest()) is not None and self._is_own(found):
                self.system.pipe_file(self._path(self.number), self._content(released=True))

    def _newest(self) -> StoredLease | None:
        for _ in range(50):
            if not (numbers := self._numbers()):
                return None
            with suppress(FileNotFoundError):  # a later owner has removed it
                return StoredLease(max(numbers), _read(self.system.cat_file(self._path(max(numbers)))))
            time.sleep(0.1)
        raise OSError(f"{self.folder} lists a lease that is not there")

    def _numbers(self) -> list[int]:
        self.system.invalidate_cache()
        try:
            names = [str(path).rpartition("/")[2] for path in self.system.ls(self.folder, detail=False)]
        except FileNotFoundError:
            return []
        return [int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d{6,12}\.json", name)]

    def _is_own(self, found: StoredLease) -> bool:
        return (
            found.number == self.number and found.content.get("lease", self.identity["lease"]) == self.identity["lease"]
        )

    def _owner_is_gone(self, found: StoredLease) -> bool:
        """Whether the owner was a process of this machine that has ended."""
        if found.content.get("machine") != self.identity["machine"]:
            return False
        try:
            return abs(psutil.Process(found.content["process"]).create_time() - found.content["started"]) > 1
        except psutil.NoSuchProcess:
            return True

    def _create(self, number: int) -> bool:
        """Create the lease with a number; return whether it is this process's."""
        path, content = self._path(number), self._content()
        try:
            _create_exclusively(self.system, path, content)
        except OSError:
            self.system.invalidate_cache()  # it lists the folder as it was before another process created the file
            if not self.system.exists(path):
                raise
        # A store that is asked again after a time-out refuses what the first try has created.
        return bool(self.system.cat_file(path) == content)

    def _remove_below(self, number: int) -> None:
        for earlier in self._numbers():
            if earlier < number:
                with suppress(FileNotFoundError):
                    self.system.rm_file(self._path(earlier))

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.json"

    def _content(self, released: bool = False) -> bytes:
        renewed = datetime.now(UTC).isoformat()
        return json.dumps({**self.identity, "renewed": renewed, "released": released}).encode()


def _create_exclusively(system: Any, path: str, data: bytes) -> None:
    with system.open(path, "xb") as file:
        file.write(data)


def _read(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _this_machine() -> str:
    """Return what processes share that see each other's ids: the machine since its start, and the namespace of ids."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.exists() and space.exists()):
        return uuid.uuid4().hex
    return f"{boot.read_text().strip()} {space.stat().st_ino}"
