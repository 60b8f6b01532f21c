"""Finished stages in a store that all machines reach: a bucket or a folder, by any URL that fsspec knows.

`<url>/<suite>/<adapter>/<order>/seed<k>/` has the folders of a run, each with a list of its files that is written last. A
machine that lacks a finished stage fetches it, so a run goes on where no file system is shared. A lease says who does the run.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, RunError
from harness.rundir.files import file_digest
from harness.rundir.shared.lease import Lease
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import MANIFEST

LISTS = "complete"  # the folder of the lists, one for each folder that is there whole


@dataclass
class RemoteStages:
    """The store of a run in the folder `run` below `out`; without a URL it does nothing."""

    url: str | None
    run: Path
    out: Path
    _lease: Lease | None = field(default=None, init=False, repr=False)

    @contextmanager
    def held(self, warn: Callable[[str], object]) -> Generator[None]:
        """Keep other machines from doing the run in this block, and fetch what the last one left; see `Lease.held`."""
        if self.url is None:
            yield
            return
        self._lease = Lease(*self._open(), self.url)
        with self._lease.held(warn):
            self.fetch()
            yield

    def put(self, *folders: StageFolder) -> None:
        """Copy what the store lacks of finished folders of the run, and its manifest.

        Raises `RunError` where the store does not take them, and where another machine has taken the run over.
        """
        if self.url is None:
            return
        system, root = self._open()
        run = self.run
        try:
            if self._lease is not None:
                self._lease.refuse_lost()
            for folder in [each.path for each in folders if each.path.is_dir()]:
                _put_folder(system, folder, f"{root}/{folder.name}", f"{root}/{LISTS}/{folder.name}.json")
            if (run / MANIFEST).is_file():
                system.makedirs(root, exist_ok=True)
                system.put_file(str(run / MANIFEST), f"{root}/{MANIFEST}")
        except OSError as error:
            raise RunError(f"storage {self.url} does not take the stages of {run} ({error}); {_CONTINUES}") from error

    def fetch(self) -> None:
        """Copy the finished folders that the run lacks from the store, each whole or not at all."""
        if self.url is None:
            return
        system, root = self._open()
        run = self.run
        try:
            marks: list[Any] = system.ls(f"{root}/{LISTS}", detail=False) if system.exists(f"{root}/{LISTS}") else []
            for mark in sorted(marks):
                name = str(mark).rpartition("/")[2].removesuffix(".json")
                files = _read(system, str(mark)) or {}
                _refuse_other_places(run, [name, *(str(Path(name) / file) for file in files)], f"storage {self.url}")
                if not all((run / name / file).is_file() for file in files):
                    self._fetch_folder(system, f"{root}/{name}", files, run / name)
            if system.exists(f"{root}/{MANIFEST}"):
                self._fetch_manifest(system, f"{root}/{MANIFEST}", run)
        except OSError as error:
            raise RunError(f"storage {self.url} does not give the stages of {run} ({error}); {_CONTINUES}") from error

    def _fetch_folder(self, system: Any, source: str, files: dict[str, str], folder: Path) -> None:
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
        try:
            for name, expected in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                system.get_file(f"{source}/{name}", str(partial / name))
                if (found := file_digest(partial / name)) != expected:
                    raise RunError(
                        f"{source}/{name} in storage {self.url} has digest {found}, expected {expected}; remove "
                        f"{source} there, and its list in {LISTS}, to make it again"
                    )
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fetch_manifest(self, system: Any, source: str, run: Path) -> None:
        """Take the store's manifest where it knows more stages than the one that is here."""
        theirs = json.loads(system.cat_file(source))
        own = json.loads((run / MANIFEST).read_text(encoding="utf-8")) if (run / MANIFEST).is_file() else None
        known = -1 if own is None else len(own["weights"]) + bool(own["finished"])
        if len(theirs["weights"]) + bool(theirs["finished"]) > known:
            partial = run / f".{MANIFEST}.{uuid.uuid4().hex}.partial"
            system.get_file(source, str(partial))
            partial.replace(run / MANIFEST)

    def examine(self) -> str:
        """Return in a few words what the store is good for; raises `ConfigError` and `RunError` where it is not usable."""
        assert self.url is not None
        try:
            leased = Lease(*self._open(), self.url).is_possible()
        except OSError as error:
            raise RunError(f"storage {self.url} does not take a file ({error})") from error
        return "takes stages" + (" and leases" if leased else ", no leases: start each run from one place")

    def _open(self) -> tuple[Any, str]:
        """Return the file system and the run's place in it; raises `ConfigError` for a URL that nothing reads."""
        import fsspec  # pyright: ignore[reportMissingTypeStubs]

        try:
            opened: tuple[Any, str] = fsspec.core.url_to_fs(self.url)  # pyright: ignore
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"storage is {self.url!r}, which fsspec cannot open ({error}); expected a folder or a URL such as "
                "s3://bucket/runs, with the package that reads it installed"
            ) from error
        system, root = opened
        system.invalidate_cache()  # what other machines wrote since the last look
        return system, f"{root.rstrip('/')}/{self.run.resolve().relative_to(self.out.resolve()).as_posix()}"


_CONTINUES = "the same command continues"


def _refuse_other_places(run: Path, names: Sequence[str], where: str) -> None:
    """Refuse a list that names anything but folders of the run and files in them: names become paths here."""
    for name in names:
        if not (run / name).resolve().is_relative_to(run.resolve()) or (run / name).resolve() == run.resolve():
            raise RunError(
                f"{where} lists {name!r}, which is not a place in the run directory {run}; remove that list there"
            )


def _put_folder(system: Any, folder: Path, target: str, mark: str) -> None:
    """Copy the files that the store has not, and remove those that are gone here, such as a checkpoint that is not kept."""
    files = {file.relative_to(folder).as_posix(): file_digest(file) for file in folder.rglob("*") if file.is_file()}
    stored = _read(system, mark) or {}
    if stored == files:
        return
    # While files change, the list names those alone that stay.
    _write(system, mark, {name: value for name, value in stored.items() if files.get(name) == value})
    for name, value in files.items():
        if stored.get(name) != value:
            system.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(folder / name), f"{target}/{name}")
    _write(system, mark, files)
    for name in stored.keys() - files.keys():
        system.rm_file(f"{target}/{name}")


def _read(system: Any, path: str) -> dict[str, str] | None:
    return json.loads(system.cat_file(path)) if system.exists(path) else None


def _write(system: Any, path: str, value: dict[str, str]) -> None:
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(path, json.dumps(value, sort_keys=True).encode())
