"""Finished stages in a store that all machines reach: a bucket or a folder, by any URL that fsspec knows.

`<url>/<suite>/<adapter>/<order>/seed<k>/` has the folders of a run, each with a list of its files that is written last, and
the last snapshot of the stage in progress. A machine that lacks them fetches them, so a run goes on where no file system is
shared. A lease says who does the run.
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

from harness.config.base import is_mapping
from harness.config.run_spec import RunSpec
from harness.errors import ConfigError, RunError
from harness.rundir.files import CHECKSUM, DONE, as_record
from harness.rundir.process.secrets import mask
from harness.rundir.schema import Manifest, upgrade
from harness.rundir.shared.lease import Lease
from harness.rundir.shared.listed_folders import (
    DamagedFolderError,
    errors_told,
    fetch_folder,
    is_inside,
    put_folder,
    read_list,
)
from harness.rundir.shared.snapshot_uploads import SnapshotUploads
from harness.rundir.shared.stored_shared_stages import StoredSharedStages
from harness.rundir.shared.stored_snapshots import FOLDER as SNAPSHOTS
from harness.rundir.shared.stored_snapshots import StoredSnapshots
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import MANIFEST, is_finished, is_of, read_manifest, refuse_configuration

LISTS = "complete"  # the folder of the lists, one for each folder that is there whole


@dataclass
class RemoteStages:
    """The store of a run in the folder `run` below `out`; without a URL it does nothing.

    With `spec`, nothing is fetched where the store or the folder holds a run of another configuration.
    """

    url: str | None
    run: Path
    out: Path
    spec: RunSpec | None = None
    _lease: Lease | None = field(default=None, init=False, repr=False)
    _stage_lease: Lease | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, spec: RunSpec) -> RemoteStages:
        """Return the store that a run's suite names."""
        return cls(spec.suite.storage, spec.path, spec.out, spec)

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
        """Copy what the store lacks of finished folders of the run, and its manifest; remove the snapshots of trained stages.

        Raises `RunError` where the store does not take them, and where another machine has taken the run over.
        """
        if self.url is None:
            return
        system, root = self._open()
        run = self.run
        with errors_told(f"storage {self.url} does not take the stages of {run}"):
            if self._lease is not None:
                self._lease.refuse_lost()
            for folder in [each.path for each in folders if each.path.is_dir()]:
                put_folder(system, folder, f"{root}/{folder.name}", f"{root}/{LISTS}/{folder.name}.json")
                if (folder / "train" / DONE).is_file():
                    self._snapshots(system, root, folder.name).remove()
            if (run / MANIFEST).is_file():
                system.makedirs(root, exist_ok=True)
                system.put_file(str(run / MANIFEST), f"{root}/{MANIFEST}")

    def lacks_end(self) -> bool:
        """Return whether the store does not know that this run is finished, as after a failure of the last copy."""
        if self.url is None:
            return False
        system, root = self._open()
        with errors_told(f"storage {self.url} does not give {MANIFEST}"):
            stored = _parsed(_read_bytes(system, f"{root}/{MANIFEST}"))
            return not stored or not stored.get("finished") or not self._holds_this_run(stored)

    def fetch(self) -> None:
        """Copy the finished folders that the run lacks from the store, each whole or not at all.

        Raises `RunError` where the store does not give them, and for a run of another configuration, there or here.
        """
        if self.url is None:
            return
        system, root = self._open()
        run = self.run
        with errors_told(f"storage {self.url} does not give the stages of {run}"):
            stored = _parsed(_read_bytes(system, f"{root}/{MANIFEST}"))
            self._refuse_another(stored, root)
            marks: list[Any] = system.ls(f"{root}/{LISTS}", detail=False) if system.exists(f"{root}/{LISTS}") else []
            for mark in sorted(marks):
                name = str(mark).rpartition("/")[2].removesuffix(".json")
                files = read_list(system, str(mark)) or {}
                _refuse_other_places(run, [name, *(str(Path(name) / file) for file in files)], f"storage {self.url}")
                if not all((run / name / file).is_file() for file in files):
                    try:
                        fetch_folder(system, f"{root}/{name}", files, run / name, self.url)
                    except DamagedFolderError as error:
                        remove = f"remove {root}/{name} there, and its list in {LISTS}, to make it again"
                        raise RunError(f"{error}; {remove}") from error
            self._fetch_manifest(system, f"{root}/{MANIFEST}", run)

    def fetch_snapshot(self, folder: StageFolder, warn: Callable[[str], object]) -> None:
        """Copy the store's newest snapshot of a stage that is not trained, unless the run's own is as new.

        `warn` gets a sentence about each damaged one.
        """
        if self.url is not None:
            self._snapshots(*self._open(), folder.path.name).fetch(folder.path / "train", warn)

    def uploads(self, folder: StageFolder, warn: Callable[[str], object]) -> SnapshotUploads | None:
        """Return what copies a stage's snapshots to the store while it trains; None without a store."""
        if self.url is None:
            return None
        return SnapshotUploads(self._snapshots(*self._open(), folder.path.name), folder.path / "train", warn)

    @contextmanager
    def shared_stage(
        self,
        key: str,
        place: Path,
        folder: StageFolder,
        announce: Callable[[], object],
        stop_if_asked: Callable[[], object],
        warn: Callable[[str], object],
    ) -> Generator[bool]:
        """Yield whether the block has to train a stage that all methods share, in `folder`, and to put it into `place`.

        Otherwise `place` has it. With a store other machines count too; see `StoredSharedStages.trained_once`. What another
        machine took over while this one was away is removed from `folder`.
        """
        if self.url is None:
            yield StageFolder(place).training_done is None
            return
        system, root = self._open()
        stored = StoredSharedStages(system, root.removesuffix(f"/{self.name}"), self.url)
        with stored.trained_once(key, place, announce, stop_if_asked) as self._stage_lease:
            try:
                if self._stage_lease is not None:
                    stored.begin(key, self.name, folder.path.name, folder.path / "train", warn)
                yield self._stage_lease is not None
            finally:
                self._stage_lease = None

    def refuse_lost_stage(self, folder: StageFolder) -> None:
        """Raise `RunError` where another machine took over the shared stage that was trained in `folder`, and remove it."""
        with errors_told(f"storage {self.url} does not give the lease of {folder.path}"):
            try:
                if self._stage_lease is not None:
                    self._stage_lease.refuse_lost()
            except RunError as error:
                shutil.rmtree(folder.path / "train")
                raise RunError(f"{error}; the same command takes what that one trained") from error

    @property
    def name(self) -> str:
        """The run's place in the store."""
        return self.run.resolve().relative_to(self.out.resolve()).as_posix()

    def _snapshots(self, system: Any, root: str, stage: str) -> StoredSnapshots:
        assert self.url is not None
        leases = tuple(lease for lease in (self._lease, self._stage_lease) if lease is not None)
        return StoredSnapshots(system, f"{root}/{SNAPSHOTS}/{stage}", self.url, leases)

    def _refuse_another(self, stored: dict[str, Any] | None, root: str) -> None:
        """Raise `RunError` where the store or the run's folder holds a run of another configuration."""
        if self.spec is None:
            return
        wanted = self.spec.config_hash, mask(self.spec.config())
        if (own := read_manifest(self.run)) is not None:
            refuse_configuration(own, *wanted, f"{self.run}", "choose another --out")
        if stored is not None:
            remedy = "choose another `storage`, or give the suite another `name`"
            refuse_configuration(_as_manifest(stored, root), *wanted, f"storage {self.url}: {root}", remedy)

    def _holds_this_run(self, stored: dict[str, Any]) -> bool:
        spec = self.spec
        return spec is None or is_of(_as_manifest(stored, f"{self.url}"), spec.config_hash, mask(spec.config()))

    def _fetch_manifest(self, system: Any, source: str, run: Path) -> None:
        """Take the store's manifest where it knows more stages or sessions than the one that is here."""
        if (theirs := _parsed(written := _read_bytes(system, source))) is None:
            return
        own = json.loads((run / MANIFEST).read_text(encoding="utf-8")) if (run / MANIFEST).is_file() else None
        if own is None or _progress(theirs) > _progress(own):
            partial = run / f".{MANIFEST}.{uuid.uuid4().hex[:8]}"
            partial.write_bytes(written)
            partial.replace(run / MANIFEST)

    def examine(self) -> str:
        """Return in a few words what the store is good for; raises `ConfigError` and `RunError` where it is not usable."""
        assert self.url is not None
        with errors_told(f"storage {self.url} does not take a file", "correct `storage`, or the rights to write there"):
            leased = Lease(*self._open(), self.url).is_possible()
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
        return system, f"{root.rstrip('/')}/{self.name}"


def is_done(spec: RunSpec) -> bool:
    """Return whether nothing of a run is left to do: it is finished, and the suite's store knows it."""
    return is_finished(spec) and not RemoteStages.of(spec).lacks_end()


def _read_bytes(system: Any, path: str) -> bytes:
    """Return a file of the store; nothing where there is none."""
    try:
        return bytes(system.cat_file(path))
    except FileNotFoundError:
        return b""


def _parsed(written: bytes) -> dict[str, Any] | None:
    """Return the fields of a manifest; None for one that is not whole: another machine is writing it."""
    try:
        value = json.loads(written)
    except ValueError:
        return None
    return value if is_mapping(value) else None


def _as_manifest(stored: dict[str, Any], place: str) -> Manifest:
    content = {name: value for name, value in stored.items() if name != CHECKSUM}
    return as_record(upgrade(content, place), Manifest, place)


def _progress(manifest: dict[str, Any]) -> tuple[int, int]:
    """Return what orders two manifests of one run: the stages that it knows, then its sessions."""
    return len(manifest["weights"]) + bool(manifest["finished"]), len(manifest.get("sessions") or ())


def _refuse_other_places(run: Path, names: Sequence[str], where: str) -> None:
    """Refuse a list that names anything but folders of the run and files in them: names become paths here."""
    for name in names:
        if not is_inside(run, name):
            raise RunError(
                f"{where} lists {name!r}, which is not a place in the run directory {run}; remove that list there"
            )
