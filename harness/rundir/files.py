"""Files that are whole or absent: JSON is replaced atomically, folders appear complete, damaged Parquet is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import RunError


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


def write_cell(folder: Path, summary: dict[str, Any], samples: pd.DataFrame) -> None:
    """Write one evaluated task; the folder appears only when both files are complete."""
    with _appears_whole(folder) as partial:
        samples.to_parquet(partial / "samples.parquet", index=False)
        write_json(partial / "results.json", summary)


def read_cell(folder: Path) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """Return an evaluated task's summary and samples, or None when it is not there."""
    summary = read_results(folder)
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


def read_results(folder: Path) -> dict[str, Any] | None:
    """Return the summary of an evaluated cell, or None when the folder does not hold one."""
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
