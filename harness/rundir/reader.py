"""Find run directories, and read their manifests and files; everything that only reads runs goes through here."""

# pyright: standard
# pyarrow has no types.
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pyarrow.parquet import ParquetFile

from harness.errors import RunError
from harness.rundir.files import CURVE, read_lines, readable
from harness.rundir.records.training_records import CurvePoint, StepLine
from harness.rundir.schema import Manifest
from harness.rundir.stage_folder import StageFolder, cell_name, stage_folder, teacher_folder
from harness.rundir.store import MANIFEST, read_manifest

SHOWN_FIRST = ["sft", "opd", "aopd"]  # kinds of adapter that come first in tables, after the controls
IDENTITY = ["label", "suite", "adapter", "order", "start", "seed"]
Role = Literal["trained", "trained before", "probe"]


@dataclass(frozen=True)
class RunDir:
    """One run: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return self.manifest.suite

    @property
    def adapter(self) -> str:
        """Name of the adapter entry."""
        return self.manifest.adapter

    @property
    def order(self) -> str:
        """Name of the stages' order."""
        return self.manifest.order

    @property
    def start(self) -> str:
        """Name of the student's start; empty where it has none."""
        return self.manifest.start

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.manifest.seed

    @property
    def stages(self) -> list[str]:
        """The stages' names, in order: the task's, or `joint` for one stage over all tasks."""
        return [stage.name for stage in self.manifest.stages]

    @property
    def trains(self) -> list[list[str]]:
        """The tasks that each stage trains."""
        return [list(stage.trains) for stage in self.manifest.stages]

    @property
    def tasks(self) -> list[str]:
        """All evaluated tasks: those of the stages in order, those that were trained before the start, then the probes."""
        before = [task for task in self.manifest.probes if task not in self.probes]
        return [*chain.from_iterable(self.trains), *before, *self.probes]

    @property
    def probes(self) -> list[str]:
        """The tasks that are evaluated and never trained, see `Manifest.never_trained`."""
        return list(self.manifest.never_trained)

    def role(self, task: str) -> Role:
        """Return whether a stage of the run trains an evaluated task, only a run before its start did, or none (a probe)."""
        if task not in self.manifest.probes:
            return "trained"
        return "probe" if task in self.probes else "trained before"

    @property
    def further_profiles(self) -> list[str]:
        """The evaluation profiles after the suite's first one."""
        return list(self.manifest.profile_names[1:])

    def tasks_under(self, profile: str) -> list[str]:
        """Return the tasks that a profile evaluates, in order; `""` is the suite's first profile, which has all tasks."""
        return [task for task in self.tasks if not profile or task in self.manifest.profiles[profile]]

    def cell_path(self, stage: int, task: str, profile: str = "", grader: str = "") -> Path:
        """Return the folder with a cell's grades, see `StageFolder.graded`."""
        return self.stage(stage).graded(cell_name(task, profile), grader)

    def teacher_cell(self, task: str, grader: str = "") -> Path:
        """Return the folder with the grades of the teacher's own answers to a task, see `StageFolder.graded`.

        It exists where the suite evaluates the teacher.
        """
        return teacher_folder(self.path).graded(task, grader)

    @property
    def steps(self) -> list[int]:
        """The training steps of each stage; 0 in manifests of early versions."""
        return [stage.steps for stage in self.manifest.stages]

    def evaluated(self, stage: int) -> bool:
        """Return whether every cell of a stage is there."""
        folder = self.stage(stage)
        cells = [
            cell_name(task, profile) for profile in ("", *self.further_profiles) for task in self.tasks_under(profile)
        ]
        return all(folder.evaluated(cell) for cell in cells)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase (models, train, evaluate, total), summed over the run's sessions; NaN where none recorded any."""
        recorded = [session.seconds for session in self.manifest.sessions if session.seconds is not None]
        phases = ("models", "train", "evaluate", "total")
        return {phase: sum(s[phase] for s in recorded) if recorded else float("nan") for phase in phases}

    @property
    def peak_memory(self) -> dict[str, float]:
        """The highest memory of any session in bytes, by phase (train, evaluate); NaN where none recorded it."""
        recorded = [session.peak_memory for session in self.manifest.sessions]
        return {
            phase: max((float(peaks[phase]) for peaks in recorded if phase in peaks), default=float("nan"))
            for phase in ("train", "evaluate")
        }

    @property
    def memory_of(self) -> str:
        """What `peak_memory` is the memory of: `gpu` or `process`; empty where no session recorded it."""
        recorded = [session.peak_memory for session in self.manifest.sessions]
        return next((str(peaks["of"]) for peaks in reversed(recorded) if "of" in peaks), "")

    def stage(self, stage: int) -> StageFolder:
        """Return a stage's folder; 0 is the start."""
        return stage_folder(self.path, stage, self.stages[stage - 1] if stage else "")

    def step_lines(self, stage: int) -> Iterator[StepLine]:
        """Yield the lines of a stage's step log; an incomplete last line is left out."""
        return read_lines(self.stage(stage).step_log, StepLine)

    def curve_points(self, stage: int) -> Iterator[CurvePoint]:
        """Yield the points of a stage's learning curve, task by task at each step; nothing where the suite has no curve."""
        return read_lines(self.stage(stage).step_log.with_name(CURVE), CurvePoint)


def identity(run: RunDir, label: str) -> dict[str, Any]:
    """Return the columns IDENTITY of a run's rows in every table; `label` is the name that readers see for its group."""
    return dict(zip(IDENTITY, (label, run.suite, run.adapter, run.order, run.start, run.seed), strict=True))


def find_runs(paths: Iterable[Path]) -> list[RunDir]:
    """Return the runs at or below each path (a suite's, an adapter's or a single run's folder), in display order.

    Raises `RunError` for a path without a run, a manifest that cannot be used, one run in two places, runs of one suite and
    order with different stages, and seeds of one method of which only some were trained on a task before their start.
    """
    found = {folder.resolve(): _read_run(folder / MANIFEST) for folder in find_run_folders(paths)}
    runs = sorted(found.values(), key=_display_order)
    _check_distinct(runs)
    return runs


def find_run_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the folders with a manifest at or below each path; raises `RunError` for a path without one."""
    found: list[Path] = []
    for path in paths:
        folders = [file.parent for file in _manifests(Path(path), set())]
        if not folders:
            raise RunError(f"No run at {path}; expected a folder with a manifest.json, or one that holds such folders")
        found += folders
    return found


def _manifests(path: Path, visited: set[Path]) -> Iterator[Path]:
    """Yield the manifests at or below a folder, each folder once; a run's own folder is not searched further."""
    if (path / MANIFEST).is_file():
        yield path / MANIFEST
    elif path.is_dir() and (place := path.resolve()) not in visited:
        visited.add(place)
        if (path / "stage_0").is_dir():
            raise RunError(f"{path} holds stages and no {MANIFEST}; restore {MANIFEST} from a copy, or move it away")
        for child in sorted(path.iterdir()):
            if not child.name.startswith("."):
                yield from _manifests(child, visited)


def _read_run(file: Path) -> RunDir:
    manifest = read_manifest(file.parent)
    if manifest is None:
        raise RunError(f"{file} was removed while it was read; run the command again")
    return RunDir(file.parent, manifest)


def read_parquet(file: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a Parquet file's columns, all for None; for the thousands of files of a report, pandas' reader is too slow."""
    with readable(file):
        return ParquetFile(file).read(columns=None if columns is None else list(columns)).to_pandas()


def parquet_bytes(file: Path) -> tuple[int, int]:
    """Return a Parquet file's size, and the part of it that holds rows; the rest describes columns."""
    groups = ParquetFile(file).metadata.to_dict()["row_groups"]
    return file.stat().st_size, sum(column["total_compressed_size"] for group in groups for column in group["columns"])


def _display_order(run: RunDir) -> tuple[int, str, str, str, str, int]:
    kind = run.manifest.kind
    first = SHOWN_FIRST.index(kind) if kind in SHOWN_FIRST else len(SHOWN_FIRST)
    rank = -1 if run.manifest.control else first
    return rank, run.adapter, run.suite, run.order, run.start, run.seed


def _check_distinct(runs: Sequence[RunDir]) -> None:
    stages: dict[tuple[str, str], RunDir] = {}
    for run in runs:
        first = stages.setdefault((run.suite, run.order), run)
        if first.stages != run.stages:
            raise RunError(
                f"{first.path} trains {', '.join(first.stages)} and {run.path} trains {', '.join(run.stages)}, both as "
                f"suite {run.suite}, order {run.order}; report them apart, or give the orders different names"
            )
    runs = sorted(runs, key=lambda run: _display_order(run)[1:])
    for before, run in pairwise(runs):
        if _display_order(before)[1:-1] == _display_order(run)[1:-1]:
            _check_roles(before, run)
        if _display_order(before)[1:] == _display_order(run)[1:]:
            raise RunError(
                f"{before.path} and {run.path} are both {run.suite}, {run.adapter}, {run.order}, seed {run.seed}; "
                "a report takes each run once, so leave one out"
            )


def _check_roles(one: RunDir, other: RunDir) -> None:
    """Refuse two seeds of a method whose tasks differ in role: a mean over them would be of different tasks by seed."""
    for task in one.tasks:
        if task in other.tasks and one.role(task) != other.role(task):
            raise RunError(
                f"{one.path} and {other.path} are seeds of one method, and {task} was trained before the start of only one of "
                "them; report them apart"
            )
