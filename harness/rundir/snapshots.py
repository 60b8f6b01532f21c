"""Snapshots of an unfinished stage, so that a killed run goes on at the step where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from harness.errors import RunError
from harness.rundir.files import replace_file
from harness.rundir.store import CURVE, ROLLOUT_LOG, SNAPSHOT, drop_steps_from


class Snapshots(Protocol):
    """Keeps one state at a time: a mapping that `torch.save` takes, taken before `step`."""

    def load(self) -> dict[str, Any] | None:
        """Return the state that was kept last, or None at the start of a stage."""
        ...

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Keep `state()` when a snapshot is due; otherwise do nothing."""
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
    """One file in the stage's training folder, replaced when `minutes` have passed; None keeps nothing.

    Loading takes the logs of steps and rollouts back to the lines before the snapshot: the steps after it are done again.
    """

    def __init__(self, folder: Path, minutes: float | None) -> None:
        self.path = folder / SNAPSHOT
        self.logs = [folder / "steps.jsonl", folder / ROLLOUT_LOG]
        self.minutes = minutes
        self.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """See `Snapshots`; raises `RunError` for a file that does not load."""
        if not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RunError(f"{self.path} does not load ({error}); remove the stage's train folder") from error
        for log in self.logs:
            if log.is_file():
                drop_steps_from(log, int(state["step"]))
        if (curve := self.path.with_name(CURVE)).is_file():
            # A point stands for the steps done before it, so the snapshot's own point stays.
            drop_steps_from(curve, int(state["step"]) + 1)
        return state

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """See `Snapshots`."""
        if self.minutes is None or time.monotonic() - self.last < 60 * self.minutes:
            return
        replace_file(self.path, lambda path: torch.save({"step": step, **state()}, path))
        self.last = time.monotonic()

    def clear(self) -> None:
        """Remove the snapshot of a stage that is finished."""
        self.path.unlink(missing_ok=True)
