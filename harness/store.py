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
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from harness.errors import RunError

SCHEMA = 2
SNAPSHOT = "snapshot.pt"
ROLLOUT_LOG = "rollouts.jsonl"


@dataclass(frozen=True)
class StageFolder:
    """One stage's part of a run directory; stage 0 is the start and has no training."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The weights after this stage."""
        return self.path / "train" / "checkpoint"

    @property
    def training_done(self) -> dict[str, Any] | None:
        """What the finished training recorded (digest, steps, seconds), or None while it is not finished."""
        return read_json(self.path / "train" / "done.json")

    def cell(self, task: str) -> Path:
        """The folder of one task's evaluation, or of one under a further profile by its `cell_name`."""
        return self.path / "eval" / task

    def evaluated(self, task: str) -> bool:
        """Whether a task's evaluation is there; the folder appears as a whole."""
        return written(self.cell(task))

    @property
    def drift(self) -> Path:
        """The folder of the distance to the start and of the entropy, see `harness.drift`; it appears as a whole."""
        return self.path / "drift"

    def noise(self, cell: str, repeat: int) -> Path:
        """The folder of one more evaluation of a cell, with another seed of the engine; `repeat` counts from 1."""
        return self.path / "noise" / cell / str(repeat)

    def regraded(self, cell: str) -> Path:
        """The folder that holds a cell's later gradings, one folder each."""
        return self.path / "regraded" / cell

    def newest_grading(self, cell: str, grader: str) -> Path | None:
        """The folder of the last grading of a cell's present answers by one grader; None where they have only their first."""
        if (evaluated := _results(self.cell(cell))) is None:
            return None
        found = [
            (summary["regraded"]["when"], folder)
            for folder in self.regraded(cell).glob(f"{glob.escape(grader)}-{'[0-9a-f]' * 16}")
            if (summary := _results(folder)) is not None
            and summary["keys"]["generation"] == evaluated["keys"]["generation"]
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

    def stage(self, index: int, task: str | None) -> StageFolder:
        """Return a stage's folder: `stage_0` for the start, else `stage_<index>_<task>`."""
        return StageFolder(self.path / ("stage_0" if index == 0 else f"stage_{index}_{task}"))

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None for a directory that no run has started in."""
        return read_json(self.path / "manifest.json")

    def start(self, manifest: dict[str, Any]) -> None:
        """Write the manifest of a new run, or check that the directory's own describes the same run."""
        self.refuse_another(manifest)
        if self.manifest is None:
            write_json(self.path / "manifest.json", {"schema": SCHEMA, **manifest})

    def refuse_another(self, manifest: dict[str, Any]) -> None:
        """Raise `RunError` when the directory was made by another configuration, with the keys that differ."""
        found = self.manifest
        if found is None:
            return
        if found.get("schema") != SCHEMA:
            raise RunError(
                f"{self.path} has schema {found.get('schema')}, this version writes {SCHEMA}; use another --out"
            )
        if found["config_hash"] != manifest["config_hash"]:
            changed = ", ".join(sorted(_differences(found["config"], manifest["config"])))
            raise RunError(
                f"{self.path} holds a run with another configuration (differs in {changed}); "
                "use another --out, or remove the folder"
            )

    def update_manifest(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replace the manifest by `change(manifest)`, atomically."""
        write_json(self.path / "manifest.json", change(self.manifest or {}))


def is_run_directory(folder: Path) -> bool:
    """Whether a folder holds a run; a manifest.json of other software is none."""
    manifest = folder / "manifest.json"
    return manifest.is_file() and '"config_hash"' in manifest.read_text(encoding="utf-8", errors="replace")


@contextmanager
def stderr_to(path: Path) -> Generator[None]:
    """Send what libraries and their child processes write to stderr to a file, away from the progress display."""
    sys.stderr.flush()
    terminal = os.dup(2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def cell_name(task: str, profile: str = "") -> str:
    """Return a cell's name: the task's under the suite's first profile, `<task>@<profile>` under a further one."""
    return f"{task}@{profile}" if profile else task


def write_cell(folder: Path, summary: dict[str, Any], samples: pd.DataFrame) -> None:
    """Write one evaluated task; the folder appears only when both files are complete."""
    with _appears_whole(folder) as partial:
        samples.to_parquet(partial / "samples.parquet", index=False)
        write_json(partial / "results.json", summary)


def read_cell(folder: Path) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """Return an evaluated task's summary and samples, or None when it is not there."""
    summary = _results(folder)
    if summary is None:
        return None
    with readable(folder / "samples.parquet") as file:
        return summary, pd.read_parquet(file)


@contextmanager
def readable(file: Path) -> Generator[Path]:
    """Read a Parquet file in this context; one that is damaged raises `RunError`."""
    try:
        yield file
    except ValueError as error:  # ArrowInvalid is one.
        raise RunError(
            f"{file} is not a Parquet file; it was changed from outside, remove its folder and evaluate again"
        ) from error


def written(folder: Path) -> bool:
    """Whether a folder of `write_cell` is there."""
    return (folder / "results.json").is_file()


def _results(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / "results.json")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically, durable when this returns."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file by what `write` puts at the path that it is given, atomically, durable when this returns."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def drop_steps_from(path: Path, step: int) -> None:
    """Keep a step log's lines before `step`; a line that a kill cut off goes too."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
    replace_file(path, lambda partial: partial.write_text("".join(kept), encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None when there is none; raises `RunError` for one that does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise RunError(
            f"{path} is not valid JSON ({error}); it was changed from outside, remove the run folder"
        ) from error


@contextmanager
def _appears_whole(folder: Path) -> Generator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if not (folder / "results.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key in one.keys() | other.keys():
        here, there = one.get(key), other.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            found |= _differences(here, there, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        elif here != there:
            found.add(f"{prefix}{key}")
    return found
