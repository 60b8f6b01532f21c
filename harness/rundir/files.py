"""Read and write files that are whole or absent: JSON is replaced atomically, folders appear complete, damage is refused."""

from __future__ import annotations

import errno
import hashlib
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

from harness.config.base import Record, digest, is_mapping, json_value
from harness.config.explain import explain
from harness.errors import RunError
from harness.rundir.records.cell_records import CellRecord, CellSummary

R = TypeVar("R", bound=Record)
C = TypeVar("C", bound=CellRecord)
RESULTS, SAMPLES = "results.json", "samples.parquet"
CHECKSUM = "checksum"  # field of a JSON file: the digest of all its other fields
# A file with one of these fields has a checksum; early versions had neither.
NEWER = ("vouched", "samples_digest", "before")
EVALUATE_AGAIN = "move its folder away and run the same command, to evaluate again"
STEPS = "steps.jsonl"
DONE = "done.json"
SNAPSHOT = "snapshot.pt"
SHARDS = "shards"  # prefix of folders next to a snapshot, with the tensors that several processes wrote
WHOLE = ".whole"  # suffix of a file with the joined tensors of such a folder, while several processes read it
ROLLOUT_LOG, ROLLOUTS = "rollouts.jsonl", "rollouts.parquet"
CURVE = "curve.jsonl"
PARTIAL = re.compile(r"^\..+\.(\d+|[a-z0-9_]{8})$")  # names of unfinished files of `replace_file` and `_appears_whole`
FULL = 2**20  # bytes: a write that fails with less free space has filled the disk
# What a folder answers that may not be read, or on a file system that flushes no folders.
NOT_FLUSHED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)
NESTING = 4  # how many folders of a run directory may be above a file's folder


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


def write_cell(folder: Path, summary: CellRecord, samples: pd.DataFrame) -> None:
    """Write one evaluated cell; the folder appears only when both files are complete. A complete cell stays as it is."""
    with _appears_whole(folder) as partial:
        samples.to_parquet(partial / SAMPLES, index=False)
        write_summary(partial, summary)


def write_summary(folder: Path, summary: CellRecord) -> None:
    """Replace a cell's results.json; it gets a checksum of itself and the digest of the samples in the folder."""
    found = {"samples_digest": file_digest(folder / SAMPLES)}
    write_sealed(folder / RESULTS, summary.model_copy(update=found))


def read_cell(folder: Path, kind: type[C] = CellSummary) -> tuple[C, pd.DataFrame] | None:
    """Return an evaluated cell's summary, a record of `kind`, and its samples; None where the folder holds no cell.

    Raises `RunError` where the samples are not those that the summary was computed from.
    """
    summary = read_results(folder, kind)
    if summary is None:
        return None
    check_samples(folder, summary)
    with readable(folder / SAMPLES) as file:
        return summary, pd.read_parquet(file)


def check_samples(folder: Path, summary: CellRecord) -> None:
    """Raise `RunError` where a cell's samples are missing or not those that its summary was computed from."""
    file = folder / SAMPLES
    if not file.is_file():
        raise RunError(f"{file} is missing; expected the answers that {RESULTS} was made of, {EVALUATE_AGAIN}")
    if summary.samples_digest and (found := file_digest(file)) != summary.samples_digest:
        raise RunError(
            f"{file} is not what {RESULTS} was made of: its digest is {found}, expected {summary.samples_digest}; "
            f"{EVALUATE_AGAIN}"
        )


@contextmanager
def readable(file: Path) -> Generator[Path]:
    """Read a Parquet file in this block; a damaged one raises `RunError`."""
    try:
        yield file
    except ValueError as error:  # of which ArrowInvalid is a subclass
        raise RunError(f"{file} is not a Parquet file; it was changed from outside, {EVALUATE_AGAIN}") from error


def written(folder: Path) -> bool:
    """Whether a folder holds a complete cell of `write_cell`."""
    return (folder / RESULTS).is_file()


def read_results(folder: Path, kind: type[C] = CellSummary) -> C | None:
    """Return the summary of an evaluated cell, or None where the folder does not hold one."""
    return read_record(folder / RESULTS, kind)


def read_record(file: Path, kind: type[R]) -> R | None:
    """Return a JSON file as a record, or None where there is no file; raises `RunError` for a wrong field or checksum."""
    found = read_sealed(file)
    return None if found is None else as_record(found, kind, file)


def read_sealed(file: Path) -> Any:
    """Return a JSON file's value without its checksum, or None where there is no file; raises `RunError` for a wrong one."""
    value = read_json(file)
    if not is_mapping(value):
        return value
    if CHECKSUM not in value:
        if any(value.get(name) for name in NEWER):
            raise RunError(f"{file} was changed from outside: it lacks its {CHECKSUM}; restore it from a copy")
        return value
    content = {name: part for name, part in value.items() if name != CHECKSUM}
    if (found := digest(content)) != value[CHECKSUM]:
        raise RunError(
            f"{file} was changed from outside: its content has the checksum {found}, expected {value[CHECKSUM]}; restore it "
            "from a copy, or see what `harness runs verify` can repair"
        )
    return content


def as_record(value: Any, kind: type[R], place: Path | str) -> R:
    """Return a JSON value as a record; raises `RunError` for a wrong field. `place` is the value's file for the message."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise RunError(
            f"{place}: {explain(error, kind)}; it was changed from outside, restore it from a copy"
        ) from error


def write_sealed(path: Path, record: Record) -> None:
    """Replace a JSON file by a record and the checksum of its fields, which `read_sealed` compares."""
    content = json.loads(json.dumps(json_value(record.as_json())))
    write_json(path, {**content, CHECKSUM: digest(content)})


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; it is on disk when this returns."""
    text = json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def json_line(value: Any) -> str:
    """Return a value as one line of a JSON-lines file."""
    return json.dumps(json_value(value), ensure_ascii=False, allow_nan=False) + "\n"


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file atomically by the one that `write` puts at the path it is given; it is on disk when this returns."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with full_disk_named(path):
            write(partial)
            sync(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # after a failure, the part that was written would fill the disk
    sync(path.parent)


@contextmanager
def full_disk_named(path: Path) -> Generator[None]:
    """Turn an error in the block that a full disk caused into a `RunError`; torch and safetensors have errors of their own."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or shutil.disk_usage(path.parent).free < FULL:
            raise RunError(
                f"{path} could not be written, because the disk is full; free some space, then the same command continues"
            ) from error
        raise


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk.

    A folder is left alone where this user may not read it, as some above a run, or where its file system flushes no folders.
    """
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_FLUSHED or not path.is_dir():
            raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush all files below a folder to the disk, and the names of these files and of the folder itself."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))
    for above in folder.parents[:NESTING]:
        sync(above)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make `target` a second name of a file that nobody changes, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove_partials(run: Path) -> None:
    """Remove half-written files of killed processes from a run directory, and snapshots and rollout logs of trained stages."""
    for path in list(run.rglob(".*")):
        if PARTIAL.match(path.name) and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for done in run.glob("stage_*/train/done.json"):
        (done.parent / ROLLOUT_LOG).unlink(missing_ok=True)
        remove_snapshot(done.parent)


def remove_snapshot(folder: Path) -> None:
    """Remove a training folder's snapshot and its shards."""
    (folder / SNAPSHOT).unlink(missing_ok=True)
    remove_shards(folder)


def remove_shards(folder: Path, but: Path | None = None) -> None:
    """Remove the folders of shards next to a snapshot, all except `but`, and the files of joined shards."""
    for shards in folder.glob(f"{SHARDS}-*"):
        if shards != but:
            shutil.rmtree(shards, ignore_errors=True)
    for joined in folder.glob(f".{SHARDS}-*{WHOLE}"):
        joined.unlink()


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None where there is no file; raises `RunError` for invalid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(
            f"{path} is not valid JSON ({error}); it was changed from outside, restore it from a copy"
        ) from error


def read_lines(file: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a JSON-lines file; an incomplete last line, of a run under way, is left out.

    Raises `RunError` for another line that is not valid JSON, and for a wrong field.
    """
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n") if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise RunError(
                    f"{file}, line {number} is not valid JSON ({error}); restore it from a copy, or train the stage again"
                ) from error
        else:
            yield as_record(value, kind, f"{file}, line {number}")


@contextmanager
def _appears_whole(folder: Path) -> Generator[Path]:
    """Yield a temporary folder that becomes `folder` at the end of the block, unless that holds a complete cell already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with full_disk_named(folder):
            yield partial
            partial.chmod(0o755)
            if not (folder / RESULTS).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                sync_tree(partial)
                partial.rename(folder)
                sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
