"""Folders in a store that are there whole or not at all: files, and a list of them with their digests that is written last.

A list is a JSON object of file names and digests. A list that was cut short is not valid JSON, and counts as none.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from harness.errors import HarnessError, RunError
from harness.rundir.files import file_digest


class DamagedFolderError(RunError):
    """A folder in a store does not hold what its list says; the message names the file."""


@contextmanager
def errors_told(what: str, remedy: str = "the same command continues") -> Generator[None]:
    """Raise `RunError` with `what`, the cause and the remedy for any error in the block that is no sentence yet.

    Each kind of store has errors of its own, so none is named here.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        raise RunError(f"{what} ({error}); {remedy}") from error


def files_in(folder: Path) -> dict[str, str]:
    """Return the digests of all files below a folder, by their paths in it."""
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in folder.rglob("*") if file.is_file()}


def put_file(system: Any, file: Path, target: str) -> None:
    """Copy a file to a place in the store."""
    system.makedirs(target.rpartition("/")[0], exist_ok=True)
    system.put_file(str(file), target)


def read_list(system: Any, path: str) -> dict[str, str] | None:
    """Return a list of files and digests; None where there is none, or one that its writer did not finish."""
    if not system.exists(path):
        return None
    try:
        value = json.loads(system.cat_file(path))
    except ValueError:
        return None
    return cast("dict[str, str]", value) if isinstance(value, dict) else None


def write_list(system: Any, path: str, files: Mapping[str, str]) -> None:
    """Write a list of files and digests."""
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(path, json.dumps(files, sort_keys=True).encode())


def put_folder(system: Any, folder: Path, target: str, mark: str) -> None:
    """Copy the files that the store lacks, and remove those that are gone here, such as a checkpoint that is not kept.

    New files come first, and changed ones are replaced when all else is there: they are not listed meanwhile, and a stage
    without its `done.json` counts as not trained. `mark` is the place of the list.
    """
    files, stored = files_in(folder), read_list(system, mark) or {}
    if stored == files:
        return
    new = {name: value for name, value in files.items() if name not in stored}
    changed = [name for name in files if name in stored and stored[name] != files[name]]
    _put_files(system, folder, new, target)
    if changed:
        # The list names no file with a digest that it does not have, and what was listed before stays until the end.
        write_list(system, mark, {name: value for name, value in (stored | new).items() if name not in changed})
        _put_files(system, folder, changed, target)
    write_list(system, mark, files)
    for name in stored.keys() - files.keys():
        system.rm_file(f"{target}/{name}")


def _put_files(system: Any, folder: Path, names: Iterable[str], target: str) -> None:
    for name in names:
        put_file(system, folder / name, f"{target}/{name}")


def fetch_folder(system: Any, source: str, files: Mapping[str, str], folder: Path, url: str) -> None:
    """Put the listed files of the store's `source` in place of a folder, which appears whole; `url` is for messages.

    Raises `DamagedFolderError` where a file is missing or different.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")  # a name that `remove_partials` knows
    try:
        for name, expected in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get_file(f"{source}/{name}", str(partial / name))
            except FileNotFoundError as error:
                raise DamagedFolderError(f"{source}/{name} is missing in storage {url}") from error
            if (found := file_digest(partial / name)) != expected:
                raise DamagedFolderError(f"{source}/{name} in storage {url} has digest {found}, expected {expected}")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_inside(folder: Path, name: str) -> bool:
    """Return whether a name from a list is a place in the folder: names become paths here."""
    place = (folder / name).resolve()
    return place != folder.resolve() and place.is_relative_to(folder.resolve())
