"""The paths of one stage's files in a run directory, and which of them are complete."""

from __future__ import annotations

import glob
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.rundir.files import DONE, SNAPSHOT, STEPS, read_record, read_results, written
from harness.rundir.records.training_records import DoneFile


@dataclass(frozen=True)
class StageFolder:
    """One stage's part of a run directory; stage 0 is the start and has no training."""

    path: Path

    @property
    def own_checkpoint(self) -> Path:
        """The folder that the stage's training writes its weights to."""
        return self.path / "train" / "checkpoint"

    @property
    def checkpoint(self) -> Path:
        """The folder of the weights after this stage: its own, or, where it changed none, the one that it began with."""
        # An absolute path stays as it is.
        done = None if self.own_checkpoint.is_dir() else self.training_done
        return self.path.parent / done.unchanged if done is not None and done.unchanged else self.own_checkpoint

    @property
    def step_log(self) -> Path:
        """The file with one line per training step."""
        return self.path / "train" / STEPS

    @property
    def training_done(self) -> DoneFile | None:
        """What the finished training recorded, or None while it is not finished."""
        return read_record(self.path / "train" / DONE, DoneFile)

    def cell(self, task: str) -> Path:
        """Return the folder of a task's evaluation; under a further profile, `task` is a `cell_name`."""
        return self.path / "eval" / task

    def evaluated(self, task: str) -> bool:
        """Return whether a task's evaluation exists; its folder appears complete."""
        return written(self.cell(task))

    @property
    def drift(self) -> Path:
        """The folder of the distance from the start, see `harness.evaluation.drift`; it appears complete."""
        return self.path / "drift"

    def noise(self, cell: str, repeat: int) -> Path:
        """Return the folder of a repeated evaluation of a cell, with another seed of the engine; `repeat` counts from 1."""
        return self.path / "noise" / cell / str(repeat)

    def regraded(self, cell: str) -> Path:
        """Return the folder of a cell's later gradings, one subfolder each."""
        return self.path / "regraded" / cell

    def newest_grading(self, cell: str, grader: str) -> Path | None:
        """Return the folder of a grader's last regrading of a cell's present answers; None where there is none."""
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

    def graded(self, cell: str, grader: str = "") -> Path:
        """Return the folder with a cell's grades: those of `grader` where there are any, else of the task's own grader.

        Where `harness regrade` wrote newer grades of that grader than the evaluation, it is the folder of the newest.
        """
        if not self.regraded(cell).is_dir() or (evaluated := read_results(self.cell(cell))) is None:
            return self.cell(cell)
        chosen = self.newest_grading(cell, grader) if grader else None
        return chosen or self.newest_grading(cell, evaluated.metric) or self.cell(cell)

    def open_training(self) -> Path:
        """Return the `train` folder: as an interrupted training left it if there is a snapshot, else empty."""
        folder = self.path / "train"
        if not (folder / SNAPSHOT).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def stage_folder(run: Path, index: int, name: str = "") -> StageFolder:
    """Return the folder of a run's stage: `stage_0` for the start, else `stage_<index>_<name>`."""
    return StageFolder(run / (f"stage_{index}_{name}" if index else "stage_0"))


def teacher_folder(run: Path) -> StageFolder:
    """Return the folder of the teacher's own evaluation, whose cells are those of a stage."""
    return StageFolder(run / "teacher")


def cell_name(task: str, profile: str = "") -> str:
    """Return a cell's name: the task's under the suite's first profile, `<task>@<profile>` under a further one."""
    return f"{task}@{profile}" if profile else task
