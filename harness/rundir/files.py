"""Files that are whole or absent: JSON is replaced atomically, folders appear complete, damaged Parquet is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from harness.config.base import Record, json_value
from harness.config.explain import explain
from harness.errors import RunError
from harness.rundir.schema import CellSummary

R = TypeVar("R", bound=Record)
SNAPSHOT = "snapshot.pt"
SHARDS = "shards"  # folders next to it, with the tensors of a snapshot that several processes wrote
ROLLOUT_LOG = "rollouts.jsonl"
CURVE = "curve.jsonl"
PARTIAL = re.compile(r"^\..+\.(\d+|[a-z0-9_]{8})$")  # of `replace_file` and `_appears_whole`
NESTING = 4  # folders of a run directory above the deepest one


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


def write_cell(folder: Path, summary: Record, samples: pd.DataFrame) -> None:
    """Write one evaluated cell; the folder appears only when both files are complete."""
    with _appears_whole(folder) as partial:
        samples.to_parquet(partial / "samples.parquet", index=False)
        write_record(partial / "results.json", summary)


def read_cell(folder: Path, kind: type[R] = CellSummary) -> tuple[R, pd.DataFrame] | None:
    """Return an evaluated cell's summary, a record of `kind`, and its samples, or None when it is not there."""
    summary = read_results(folder, kind)
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
            f"{file} is not a Parquet file; it was changed from outside, move its folder away and run the same command, "
            "to evaluate again"
        ) from error


def written(folder: Path) -> bool:
    """Whether a folder of `write_cell` is there."""
    return (folder / "results.json").is_file()


def read_results(folder: Path, kind: type[R] = CellSummary) -> R | None:
    """Return the summary of an evaluated cell, or None when the folder does not hold one."""
    return read_record(folder / "results.json", kind)


def read_record(file: Path, kind: type[R]) -> R | None:
    """Return a JSON file as a record, or None when there is none; raises `RunError` with file, field and what was found."""
    found = read_json(file)
    return None if found is None else as_record(found, kind, file)


def as_record(value: Any, kind: type[R], place: Path | str) -> R:
    """Return a JSON value as a record; raises `RunError` with `place`, field, what was found and what was expected."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise RunError(
            f"{place}: {explain(error, kind)}; it was changed from outside, restore it from a copy"
        ) from error


def write_record(path: Path, record: Record) -> None:
    """Replace a JSON file by a record, see `write_json`."""
    write_json(path, record.as_json())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically, durable when this returns."""
    text = json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def json_line(value: Any) -> str:
    """Return a value as one line of a JSON-lines file."""
    return json.dumps(json_value(value), ensure_ascii=False, allow_nan=False) + "\n"


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file by what `write` puts at the path that it is given, atomically, durable when this returns."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # what a full disk left would keep it full
    sync(path.parent)


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Return when all files below a folder are on the disk, and the names of the folder and of what is in it."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))
    for above in folder.parents[:NESTING]:
        sync(above)


def remove_partials(run: Path) -> None:
    """Remove what a killed process left half written in a run directory, and the snapshots and lines of finished stages."""
    for path in list(run.rglob(".*")):
        if PARTIAL.match(path.name) and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for done in run.glob("stage_*/train/done.json"):
        (done.parent / ROLLOUT_LOG).unlink(missing_ok=True)
        remove_snapshot(done.parent)


def remove_snapshot(folder: Path) -> None:
    """Remove a training folder's snapshot."""
    (folder / SNAPSHOT).unlink(missing_ok=True)
    remove_shards(folder)


def remove_shards(folder: Path, but: Path | None = None) -> None:
    """Remove the folders of tensors next to a snapshot, all but one."""
    for shards in folder.glob(f"{SHARDS}-*"):
        if shards != but:
            shutil.rmtree(shards, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None when there is none; raises `RunError` for one that does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(
            f"{path} is not valid JSON ({error}); it was changed from outside, restore it from a copy"
        ) from error


def read_lines(file: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a JSON-lines file; the last line may be half written while its run goes on."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise RunError(f"{file}, line {number} is not valid JSON ({error}); train the stage again.") from error
        else:
            yield as_record(value, kind, f"{file}, line {number}")


@contextmanager
def _appears_whole(folder: Path) -> Generator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if not (folder / "results.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            sync_tree(partial)
            partial.rename(folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
