"""Snapshots of an unfinished stage, so that a killed run goes on at the step where it stopped."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from harness.errors import RunError, StoppedError
from harness.rundir.files import CURVE, ROLLOUT_LOG, SNAPSHOT, file_digest, replace_file, sync
from harness.rundir.store import drop_steps_from


class Snapshots(Protocol):
    """Keeps one state at a time: a mapping that `torch.save` takes, taken before `step`."""

    def load(self) -> dict[str, Any] | None:
        """Return the state that was kept last, or None at the start of a stage."""
        ...

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Keep `state()` when a snapshot is due; otherwise do nothing."""
        ...


@dataclass
class StopRequest:
    """A signal that asks a run to stop; `waited_for` says that the training under way looks for it at every step.

    `cost` says what an end at once loses: a training that keeps no snapshots begins again.
    """

    signal: str = ""
    since: float = 0.0  # when it came, by the monotonic clock
    waited_for: bool = False
    cost: str = ""


class NoSnapshots:
    """Keeps nothing."""

    def load(self) -> dict[str, Any] | None:
        """Return None."""
        return None

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Do nothing."""


NO_SNAPSHOTS = NoSnapshots()


class FileSnapshots:
    """One file in the stage's training folder, replaced when `minutes` have passed; None keeps nothing.

    Loading takes the logs of steps and rollouts back to the lines before the snapshot: the steps after it are done again.
    A snapshot vouches for `inputs`, the digests of what the stage trains from, and for both logs' lines up to its step.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float | None,
        inputs: Mapping[str, str] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.path, self.logs = folder / SNAPSHOT, [folder / "steps.jsonl", folder / ROLLOUT_LOG]
        self.minutes, self.inputs, self.stop = minutes, dict(inputs or {}), stop or StopRequest()
        self.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """See `Snapshots`; raises `RunError` for a file that is damaged or belongs to other inputs or another log."""
        self.stop.waited_for = self.minutes is not None
        if not self.path.is_file():
            return None
        state = self._read()
        for log in self.logs:
            if log.is_file():
                drop_steps_from(log, int(state["step"]))
        if (curve := self.path.with_name(CURVE)).is_file():
            # A point stands for the steps done before it, so the snapshot's own point stays.
            drop_steps_from(curve, int(state["step"]) + 1)
        recorded = state.pop("recorded", {})
        changed = [name for name, value in recorded.get("inputs", {}).items() if self.inputs.get(name, value) != value]
        if changed:
            raise RunError(
                f"{self.path} was taken with another {' and another '.join(changed)}, which changed since; put back what was "
                "there, or choose another --out"
            )
        for log in self.logs:
            if recorded.get(log.name, _digest_of(log)) != _digest_of(log):
                raise RunError(
                    f"{log} does not hold the {state['step']} steps before the snapshot; restore it from a copy, or move "
                    f"{self.path.parent} away to train the stage again"
                )
        return state

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """See `Snapshots`; where a signal asks for it, keep the state at once and raise `StoppedError`."""
        if self.minutes is None:
            return
        if not self.stop.signal and time.monotonic() - self.last < 60 * self.minutes:
            return
        for log in self.logs:
            if log.is_file():
                sync(log)
        recorded = {"inputs": self.inputs, **{log.name: _digest_of(log) for log in self.logs}}
        replace_file(self.path, lambda path: torch.save({"step": step, "recorded": recorded, **state()}, path))
        self.last = time.monotonic()
        if self.stop.signal:
            raise StoppedError(
                f"stopped by {self.stop.signal} before step {step}, with a snapshot; the same command continues"
            )

    def clear(self) -> None:
        """Remove the snapshot of a stage that is finished."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} has a wrong checksum")
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RunError(
                f"{self.path} is damaged ({error}); restore it from a copy, or move it away to train the stage from its start"
            ) from error


def _digest_of(log: Path) -> str:
    return file_digest(log) if log.is_file() else ""
