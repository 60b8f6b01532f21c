"""Remove the checkpoints that a run need not keep, and check that its disk has room for the next one.

A checkpoint is removed only when nothing needs it any more: the next stage is trained, its own stage is evaluated, the suite
does not keep it, and all runs that started from it are finished.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.config.run_spec import PlannedStage
from harness.config.suite import Checkpoints, Suite
from harness.errors import RunError
from harness.rundir.files import DONE, read_json, write_json, write_sealed
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import read_manifest
from harness.terminal.byte_sizes import show_bytes

NEEDED_BY = "needed_by"  # folder next to a checkpoint, with a file for each run that started from it
SNAPSHOT_SIZE = 3  # times the weights: the weights themselves and AdamW's two moments


def drop_checkpoints(
    folders: Sequence[StageFolder], stages: Sequence[PlannedStage], keep: Checkpoints, present: Path | None = None
) -> None:
    """Remove the checkpoints of finished stages that `keep` does not name; `stages` begin with those of `folders`.

    The weights in `present` stay: a stage that changes none has those of an earlier stage.
    """
    for folder, stage in zip(folders, stages, strict=False):
        done, own = folder.training_done, folder.own_checkpoint
        if done is None or keep.holds(stage.name) or not own.is_dir() or _needed(folder):
            continue
        if present is not None and own.resolve() == present.resolve():
            continue
        if done.kept:  # noted first, so that a checkpoint is never missing without a note
            write_sealed(own.with_name(DONE), done.model_copy(update={"kept": False}))
        shutil.rmtree(own)


def note_start(start: Path, run: Path) -> None:
    """Write next to another run's checkpoint that `run` started from it; do nothing for a start from elsewhere."""
    if (start.parent / DONE).is_file() and start.name == "checkpoint":
        name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        (start.parent / NEEDED_BY).mkdir(exist_ok=True)
        write_json(start.parent / NEEDED_BY / f"{name}.json", {"run": str(run.resolve())})


def snapshots_at_once(suite: Suite) -> int:
    """Return how many snapshots are on disk at once: the last, the next one while it is written, one on its way to a store."""
    return 0 if suite.snapshot_minutes is None else 2 if suite.storage is None else 3


def check_space(run: Path, size: int, stage: str, snapshots: int) -> str:
    """Raise `RunError` where the disk has no room for a stage's checkpoint; return a warning where snapshots may not fit.

    The warning is empty where all fits. `size` is the checkpoint's in bytes. `snapshots` are on disk at once, each with the
    weights and two moments of each.
    """
    free = shutil.disk_usage(run).free
    if free < size:
        raise RunError(
            f"stage {stage} leaves a checkpoint of about {show_bytes(size)}, and {run} has {show_bytes(free)} free; free "
            "some space, or set checkpoints.keep=last, and run the same command to continue"
        )
    needed = size * (1 + snapshots * SNAPSHOT_SIZE)
    if snapshots and free < needed:
        return (
            f"stage {stage} takes up to {show_bytes(needed)} with its snapshots, and {run} has {show_bytes(free)} free; free "
            "some space, or set snapshot_minutes=null to do without snapshots"
        )
    return ""


def _needed(folder: StageFolder) -> bool:
    """Whether a run that started from the checkpoint is not finished, or has no manifest yet."""
    for file in (folder.own_checkpoint.parent / NEEDED_BY).glob("*.json"):
        manifest = read_manifest(Path(str(read_json(file)["run"])))
        if manifest is None or not manifest.finished:
            return True
    return False
