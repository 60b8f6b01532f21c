"""Snapshots of an unfinished stage, from which a killed run continues at the step of the last one."""

from __future__ import annotations

import json
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from harness.config.teacher_identity import same_teacher
from harness.errors import RunError, StoppedError
from harness.lm.ranks import Ranks, current_ranks
from harness.rundir.files import (
    CURVE,
    ROLLOUT_LOG,
    SHARDS,
    SNAPSHOT,
    STEPS,
    file_digest,
    link_or_copy,
    remove_shards,
    remove_snapshot,
    replace_file,
    sync,
)
from harness.rundir.training.shards import check_shards, join_shards, read_whole, write_shards


class Snapshots(Protocol):
    """Keeps one state of a stage at a time: a mapping that `torch.save` can write, from before a step."""

    def load(self) -> dict[str, Any] | None:
        """Return the last state, with `step` in it, or None at the start of a stage."""
        ...

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Keep `state()`, the state before `step`, when a snapshot is due; otherwise do nothing."""
        ...


@dataclass
class StopRequest:
    """A signal that asks a run to stop: its name, empty before it came.

    `waited_for` says that the present training looks for the signal at every step. `cost` is the part of the message that says
    what stopping at once loses.
    """

    signal: str = ""
    since: float = 0.0  # when the signal came, by the monotonic clock
    waited_for: bool = False
    cost: str = ""


class Uploads(Protocol):
    """Copies snapshots to a store while a stage trains."""

    def offer(self, step: int) -> None:
        """Begin to copy the snapshot before `step`, without waiting for it."""
        ...

    def check(self) -> None:
        """Warn of what failed since; raises `RunError` where the stage must not go on."""
        ...

    def wait(self) -> None:
        """Wait until the last snapshot is copied."""
        ...


class NoSnapshots:
    """Keeps nothing."""

    def load(self) -> dict[str, Any] | None:
        """Return None."""
        return None

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Do nothing."""


NO_SNAPSHOTS = NoSnapshots()


class FileSnapshots:
    """A snapshot file in the stage's training folder, replaced every `minutes`; None keeps nothing.

    Loading removes the lines after the snapshot from the logs of steps and rollouts and from the learning curve, because
    these steps are done again. A snapshot records `inputs`, the digests of what the stage trains from, and the digests of
    these files up to its step; loading checks them. `stop` is the run's request to stop. `uploads` copies each snapshot to a
    store.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float | None,
        inputs: Mapping[str, str] | None = None,
        stop: StopRequest | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self.path, self.logs, self.curve = folder / SNAPSHOT, [folder / STEPS, folder / ROLLOUT_LOG], folder / CURVE
        self.minutes, self.inputs, self.stop, self.uploads = minutes, dict(inputs or {}), stop or StopRequest(), uploads
        self.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """See `Snapshots`; raises `RunError` for a damaged file, and for inputs or logs that changed since."""
        state = self.read()
        if state is None or SHARDS not in state:
            return state
        file = self.join(*state.pop(SHARDS))
        try:
            return {**state, **read_whole(file)}
        finally:
            file.unlink()

    def read(self, *, mapped: bool = False) -> dict[str, Any] | None:
        """Return the state in the file, as `load` does; the tensors of several processes stay in shards.

        For those it holds the arguments of `join`.
        """
        self.stop.waited_for = self.minutes is not None
        if not self.path.is_file():
            return None
        state = self._read(mapped)
        for log in self.logs:
            if log.is_file():
                drop_steps_from(log, int(state["step"]))
        if self.curve.is_file():
            # A point counts the steps done, so the point at the snapshot's own step stays.
            drop_steps_from(self.curve, int(state["step"]) + 1)
        recorded = state.pop("recorded", {})
        before: dict[str, str] = recorded.get("inputs", {})
        changed = [name for name, value in before.items() if not same_teacher(self.inputs.get(name, value), value)]
        if changed:
            raise RunError(
                f"{self.path} was taken with another {' and another '.join(changed)}; put the former one back, or choose "
                "another --out"
            )
        for log in (*self.logs, self.curve):
            if recorded.get(log.name, _digest_of(log)) != _digest_of(log):
                raise RunError(
                    f"{log} does not hold the {state['step']} steps before the snapshot; restore it from a copy, or move "
                    f"{self.path.parent} away to train the stage again"
                )
        if SHARDS in state:
            # Earlier versions recorded no digests of shards.
            state[SHARDS] = state[SHARDS], recorded.get(SHARDS, {})
        return state

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """See `Snapshots`; after a signal, keep the state at once and raise `StoppedError`."""
        self.check_uploads()
        if self.due:
            self.keep(step, state())

    def check_uploads(self) -> None:
        """See `Uploads.check`."""
        if self.uploads is not None:
            self.uploads.check()

    @property
    def due(self) -> bool:
        """Whether `minutes` have passed since the last snapshot, or a signal came; never where `minutes` is None."""
        if self.minutes is None:
            return False
        return bool(self.stop.signal) or time.monotonic() - self.last >= 60 * self.minutes

    def keep(self, step: int, state: Mapping[str, Any], shards: Mapping[str, str] | None = None) -> None:
        """Replace the snapshot; after a signal, wait until a store has it too, and raise `StoppedError`.

        `shards` holds the digests of the files in the folder of shards that the state names.
        """
        logs = (*self.logs, self.curve)
        for log in logs:
            if log.is_file():
                sync(log)
        recorded = {"inputs": self.inputs, **{log.name: _digest_of(log) for log in logs}, SHARDS: dict(shards or {})}
        replace_file(self.path, lambda path: torch.save({"step": step, "recorded": recorded, **state}, path))
        self.last = time.monotonic()
        if self.uploads is not None:
            self.uploads.offer(step)
            if self.stop.signal:
                self.uploads.wait()
        if self.stop.signal:
            raise StoppedError(
                f"stopped by {self.stop.signal} before step {step}, with a snapshot; the same command continues"
            )

    def clear(self) -> None:
        """Remove the snapshot of a finished stage."""
        remove_snapshot(self.path.parent)

    def join(self, shards: str, digests: Mapping[str, str]) -> Path:
        """Return a file with the whole tensors of a folder of shards; the caller removes it.

        Raises `RunError` for a file in the folder that is missing or damaged.
        """
        try:
            check_shards(folder := self.path.with_name(shards), digests)
            return join_shards(folder)
        except RunError:
            raise
        except Exception as error:
            raise self._damaged(error) from error

    def _read(self, mapped: bool) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} has a wrong checksum")
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> RunError:
        return RunError(
            f"{self.path} is damaged ({error}); restore it from a copy, or move it away to train the stage from its start"
        )


def shared_snapshots(snapshots: FileSnapshots) -> Snapshots:
    """Return snapshots for all processes that train together; for one process, `snapshots` itself."""
    return snapshots if (ranks := current_ranks()).size == 1 else ShardedSnapshots(snapshots, ranks)


class ShardedSnapshots:
    """Snapshots of several processes: the first one decides when and writes the file, each writes its shard of the tensors.

    The file names the folder of the shards and holds the digests of all files in it. Any number of processes can continue from
    it; the same number continues with bit-identical weights.
    """

    PARTS = ("student", "updater", "reference")

    def __init__(self, file: FileSnapshots, ranks: Ranks) -> None:
        self.file, self.ranks = file, ranks
        self.joined: Path | None = None

    def load(self) -> dict[str, Any] | None:
        """See `Snapshots`; the whole tensors stay in a file that all processes map, so each reads only what it takes."""
        state, file = self.ranks.from_first(self._read() if self.ranks.rank == 0 else (None, self.file.path))
        if state is None:
            return None
        tensors = read_whole(file, mapped=True)
        state |= {name: tensors[name] for name in self.PARTS if name in tensors}
        self.joined = None if file == self.file.path else file
        generators = state.get("generators", [])
        return {**state, **generators[self.ranks.rank]} if len(generators) == self.ranks.size else state

    def _drop_joined(self) -> None:
        """Remove the file of joined shards when every process has its part; a network file system needs it until then."""
        if self.joined is None:
            return
        self.ranks.gather(None)
        if self.ranks.rank == 0:
            self.joined.unlink(missing_ok=True)
        self.joined = None

    def _read(self) -> tuple[dict[str, Any] | None, Path]:
        """Return the state without tensors, and the file that has them whole."""
        state = self.file.read(mapped=True)
        file = self.file.join(*state.pop(SHARDS)) if state and SHARDS in state else self.file.path
        return state and {name: value for name, value in state.items() if name not in self.PARTS}, file

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """See `Snapshots`; a signal to the first process ends all of them."""
        self._drop_joined()
        first, folder = self.ranks.rank == 0, self.file.path.with_name(f"{SHARDS}-{step}")
        if first:
            self.file.check_uploads()
        due, place = self.ranks.from_first((first and self.file.due, folder))
        if not due:
            return
        stop: StoppedError | None = None
        with self._removed_on_failure(place, step):
            kept = state()
            digests = write_shards(place, {name: kept.pop(name) for name in self.PARTS if name in kept})
            random = {name: value for name, value in kept.items() if name.startswith("random")}
            kept |= {"generators": self.ranks.gather(random), SHARDS: place.name}
            if first:
                try:
                    self.file.keep(step, kept, digests)
                except StoppedError as error:
                    stop = error
                remove_shards(place.parent, but=place)
        if (stopped := self.ranks.from_first(stop)) is not None:
            raise stopped

    @contextmanager
    def _removed_on_failure(self, shards: Path, step: int) -> Generator[None]:
        """Remove the shards of `step` when this block fails before the file names them; the former snapshot stays as it is."""
        try:
            yield
        except BaseException:
            if self.ranks.rank == 0 and snapshot_step(shards.parent) != step:
                shutil.rmtree(shards, ignore_errors=True)
            raise


def snapshot_step(folder: Path) -> int | None:
    """Return the step of the snapshot in a training folder, None where there is none that can be read."""
    try:
        return int(torch.load(folder / SNAPSHOT, map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception:  # `FileSnapshots.load` names the damage
        return None


def copy_snapshot(folder: Path, step: int) -> Path:
    """Return a folder next to the snapshot before `step` with its files as they are now, which nobody changes.

    The tensors are linked where the file system has links, and take no further room; the logs are copied, as they grow.
    """
    copy = folder / f".upload.{uuid.uuid4().hex[:8]}"  # a name that `remove_partials` knows
    copy.mkdir()
    link_or_copy(folder / SNAPSHOT, copy / SNAPSHOT)
    if (shards := folder / f"{SHARDS}-{step}").is_dir():
        shutil.copytree(shards, copy / shards.name, copy_function=link_or_copy)
    for log in (STEPS, ROLLOUT_LOG, CURVE):
        if (folder / log).is_file():
            shutil.copyfile(folder / log, copy / log)
    return copy


def _digest_of(log: Path) -> str:
    return file_digest(log) if log.is_file() else ""


def drop_steps_from(path: Path, step: int) -> None:
    """Keep a step log's lines before `step`; an incomplete last line is removed too. Raises `RunError` for other lines."""
    # Not `splitlines`, which also splits at U+2028 and similar characters, and answers may contain these.
    *lines, _ = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    try:
        kept = [f"{line}\n" for line in lines if int(json.loads(line)["step"]) < step]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path} holds a line that is not a step ({type(error).__name__}: {error}); restore it from a copy, or move "
            f"{path.parent} away to train the stage again"
        ) from error
    replace_file(path, lambda partial: partial.write_text("".join(kept), encoding="utf-8"))
