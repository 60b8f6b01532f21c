"""The run directory: the only state of a run, appended to or atomically replaced, never edited in place.

    runs/<suite>/<adapter>/<order>/seed<k>/
      manifest.json, log.txt
      stage_0/eval/<task>/results.json, samples.parquet            the suite's first profile
      stage_0/eval/<task>@<profile>/...                            each further profile
      stage_0/regraded/<task>[@<profile>]/<grader>-<digest>/...    the same answers graded anew
      stage_0/noise/<cell>/<n>/...                                 the start evaluated again with other seeds
      stage_0/drift/results.json, samples.parquet                  distance to the start and entropy; so in every stage
      stage_1_<task>/train/steps.jsonl, rollouts.parquet, checkpoint/, done.json
      stage_1_<task>/eval/<task>/...

A stage is trained when its `done.json` exists, a task is evaluated when its folder exists; both appear whole or not at
all. Whatever else lies in a stage's folder is what a killed process left, and is made again; a `snapshot.pt` beside the step
log lets the stage go on from its step. `last_good` holds the weights before an update that broke a training, for the user.
"""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import RunError
from harness.rundir.comparability import differing
from harness.rundir.files import as_record, read_json, read_record, read_results, replace_file, write_record, written
from harness.rundir.schema import DoneFile, Manifest, upgrade

MANIFEST = "manifest.json"
SNAPSHOT = "snapshot.pt"
ROLLOUT_LOG = "rollouts.jsonl"
CURVE = "curve.jsonl"


@dataclass(frozen=True)
class StageFolder:
    """One stage's part of a run directory; stage 0 is the start and has no training."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The weights after this stage."""
        return self.path / "train" / "checkpoint"

    @property
    def step_log(self) -> Path:
        """The file with one line per training step."""
        return self.path / "train" / "steps.jsonl"

    @property
    def training_done(self) -> DoneFile | None:
        """What the finished training recorded, or None while it is not finished."""
        return read_record(self.path / "train" / "done.json", DoneFile)

    def cell(self, task: str) -> Path:
        """The folder of one task's evaluation, or of one under a further profile by its `cell_name`."""
        return self.path / "eval" / task

    def evaluated(self, task: str) -> bool:
        """Whether a task's evaluation is there; the folder appears as a whole."""
        return written(self.cell(task))

    @property
    def drift(self) -> Path:
        """The folder of the distance to the start, see `harness.evaluation.drift`; it appears complete."""
        return self.path / "drift"

    def noise(self, cell: str, repeat: int) -> Path:
        """The folder of one more evaluation of a cell, with another seed of the engine; `repeat` counts from 1."""
        return self.path / "noise" / cell / str(repeat)

    def regraded(self, cell: str) -> Path:
        """The folder that holds a cell's later gradings, one folder each."""
        return self.path / "regraded" / cell

    def newest_grading(self, cell: str, grader: str) -> Path | None:
        """The folder of the last grading of a cell's present answers by one grader; None where they have only their first."""
        if (evaluated := read_results(self.cell(cell))) is None:
            return None
        found = [
            (summary.regraded.when, folder)
            for folder in self.regraded(cell).glob(f"{glob.escape(grader)}-{'[0-9a-f]' * 16}")
            if (summary := read_results(folder)) is not None
            and summary.regraded is not None
            and summary.keys.generation == evaluated.keys.generation
        ]
        return max(found)[1] if found else None

    def open_training(self) -> Path:
        """Return the `train` folder: with an interrupted training's snapshot where it left one, else empty."""
        folder = self.path / "train"
        if not (folder / SNAPSHOT).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class RunStore:
    """One run directory, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory; raises `RunError` when another process works in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(f"{self.path} is in use by another process; wait for it or choose another --out") from error
        try:
            yield
        finally:
            lock.release()

    def stage(self, index: int, name: str = "") -> StageFolder:
        """Return a stage's folder, see `stage_folder`."""
        return stage_folder(self.path, index, name)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, or None for a directory that no run has started in."""
        return read_manifest(self.path)

    def start(self, manifest: Manifest) -> None:
        """Write the manifest of a new run, or check that the directory's own describes the same run."""
        self.refuse_another(manifest)
        if self.manifest is None:
            write_record(self.path / MANIFEST, manifest)

    def refuse_another(self, manifest: Manifest) -> None:
        """Raise `RunError` when the directory was made by another configuration, with the keys that differ."""
        found = self.manifest
        if found is not None and found.config_hash != manifest.config_hash:
            changed = ", ".join(sorted(differing(found.config, manifest.config)))
            raise RunError(
                f"{self.path} holds a run with another configuration (differs in {changed}); "
                "use another --out, or remove the folder"
            )

    def update_manifest(self, change: Callable[[Manifest], Manifest]) -> None:
        """Replace the manifest by `change(manifest)`, atomically."""
        found = self.manifest
        if found is None:
            raise RunError(f"{self.path / MANIFEST} is gone; restore it from a copy, or use another --out")
        write_record(self.path / MANIFEST, change(found))


def stage_folder(run: Path, index: int, name: str = "") -> StageFolder:
    """Return the folder of a run's stage: `stage_0` for the start, else `stage_<index>_<name>`."""
    return StageFolder(run / (f"stage_{index}_{name}" if index else "stage_0"))


def read_manifest(run: Path) -> Manifest | None:
    """Return a run's manifest, one of an earlier version upgraded, or None where there is none; raises `RunError`."""
    file = run / MANIFEST
    found = read_json(file)
    if found is None:
        return None
    return as_record(upgrade(found, str(file)), Manifest, file)


def is_run_directory(folder: Path) -> bool:
    """Whether a folder holds a run; a manifest.json of other software is none."""
    manifest = folder / MANIFEST
    return manifest.is_file() and '"config_hash"' in manifest.read_text(encoding="utf-8", errors="replace")


def cell_name(task: str, profile: str = "") -> str:
    """Return a cell's name: the task's under the suite's first profile, `<task>@<profile>` under a further one."""
    return f"{task}@{profile}" if profile else task


def drop_steps_from(path: Path, step: int) -> None:
    """Keep a step log's lines before `step`; a line that a kill cut off goes too."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
    replace_file(path, lambda partial: partial.write_text("".join(kept), encoding="utf-8"))
