"""The run directory, the only state of a run: its files are appended to or atomically replaced, never edited in place.

    runs/<suite>/<adapter>/<order>/seed<k>/
      manifest.json, log.txt
      stage_0/eval/<task>/results.json, samples.parquet            the suite's first profile
      stage_0/eval/<task>@<profile>/...                            each further profile
      stage_0/regraded/<task>[@<profile>]/<grader>-<digest>/...    the same answers graded again
      stage_0/noise/<cell>/<n>/...                                 the start evaluated again with other seeds
      teacher/eval/<task>/...                                      the teacher's own scores, under the first profile
      teacher/regraded/<task>/<grader>-<digest>/...                its answers graded again
      stage_0/drift/results.json, samples.parquet                  distance to the start and entropy; so in every stage
      stage_1_<task>/train/steps.jsonl, rollouts.parquet, checkpoint/, done.json
      stage_1_<task>/eval/<task>/...

A stage is trained when its `done.json` exists, and a task is evaluated when its folder exists; both appear whole or not at
all. Other files in a stage's folder were left by a killed process and are made again, except that a stage continues from a
`snapshot.pt` next to its step log. `last_good` holds the weights from before an update that ended a training, for the user.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.config.run_spec import RunSpec, averages_micro_batches, identity_of, session_settings
from harness.errors import RunError
from harness.rundir.differences import find_differences, without_autocast
from harness.rundir.files import (
    as_record,
    read_sealed,
    remove_partials,
    write_sealed,
    written,
)
from harness.rundir.locks import free_lock
from harness.rundir.process.secrets import mask
from harness.rundir.schema import Manifest, Session, now, upgrade
from harness.rundir.stage_folder import StageFolder, cell_name, stage_folder, teacher_folder

MANIFEST = "manifest.json"
LOCK = ".lock"


class RunStore:
    """One run directory, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory in the block; raises `InUseError` where another process holds it.

        Half-written files of killed processes are removed first.
        """
        with free_lock(self.path / LOCK):
            remove_partials(self.path)
            yield

    def stage(self, index: int, name: str = "") -> StageFolder:
        """Return a stage's folder; 0 is the start, see `stage_folder`."""
        return stage_folder(self.path, index, name)

    @property
    def teacher(self) -> StageFolder:
        """The folder of the teacher's own evaluation."""
        return teacher_folder(self.path)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, or None for a directory in which no run has started."""
        return read_manifest(self.path)

    def start(self, manifest: Manifest, session: Session) -> None:
        """Begin a session of a new run or of an interrupted one.

        Raises `RunError` where the directory holds a different run, or where a start, template or record changed.
        """
        self.refuse_another(manifest)
        if (found := self.manifest) is None:
            found = manifest
        else:
            _refuse_changed_inputs(self.path, found, manifest)
        self._write(found.model_copy(update={"sessions": (*found.sessions, session)}))

    def refuse_another(self, manifest: Manifest) -> None:
        """Raise `RunError` where the directory holds a run of a different or unknown configuration; it names the keys."""
        found = self.manifest
        if found is None and any(self.path.glob("stage_*/*/*")):
            raise RunError(
                f"{self.path} holds stages and no {MANIFEST}, so their configuration is not known; restore {MANIFEST} from a "
                "copy, or choose another --out"
            )
        if found is not None:
            refuse_configuration(found, manifest.config_hash, manifest.config, f"{self.path}", "choose another --out")

        if found is not None and found.sessions and not found.finished and averages_micro_batches(manifest.config):
            now, before = session_settings(manifest.config), found.sessions[-1].settings
            for key in (key for key in {**now, **before} if before and key.endswith("training.micro_batch")):
                was, present = (settings.get(key, "not set") for settings in (before, now))
                if was != present:
                    raise RunError(
                        f"{self.path} was trained with {key} {was}, and now it is {present}; with reduction: "
                        "micro_batch_mean the loss depends on it, so set it back, or choose another --out"
                    )

    def record(self, weights: Mapping[str, str], **of_session: Any) -> None:
        """Record the digests of the weights so far, and fields of the present session, such as its seconds."""
        self._write(self._progress(weights, of_session))

    def finish(self, weights: Mapping[str, str], **of_session: Any) -> None:
        """Record the same, and that the run is finished."""
        self._write(self._progress(weights, of_session).model_copy(update={"finished": now()}))

    def _progress(self, weights: Mapping[str, str], of_session: Mapping[str, Any]) -> Manifest:
        if (found := self.manifest) is None:
            raise RunError(f"{self.path / MANIFEST} is gone; restore it from a copy, or choose another --out")
        *before, last = found.sessions
        sessions = (*before, last.model_copy(update=of_session))
        return found.model_copy(update={"weights": {**found.weights, **weights}, "sessions": sessions})

    def _write(self, manifest: Manifest) -> None:
        write_sealed(self.path / MANIFEST, manifest)


def refuse_configuration(
    found: Manifest, config_hash: str, config: Mapping[str, Any], holder: str, otherwise: str
) -> None:
    """Raise `RunError` where a manifest is of another configuration; the error names the keys.

    `holder` is the place of the manifest, `otherwise` what else to do than to set the keys back.
    """
    if is_of(found, config_hash, config):
        return
    parts = identity_of(found.config), identity_of(config)
    differences = find_differences(*parts)
    if differences and without_autocast(parts[0]) == without_autocast(parts[1]):
        pairs = {key: before or "null" for key, (before, _) in differences.items() if key.endswith("autocast")}
        settings = " ".join(f"--set {key}={before}" for key, before in pairs.items())
        raise RunError(
            f"{holder} holds a run with another autocast, which a suite with `autocast: auto` gets from the machine; continue "
            f"it with {settings}, or {otherwise}"
        )
    changed = ", ".join(sorted(differences))
    raise RunError(
        f"{holder} holds a run with a different configuration (differs in {changed}); {otherwise}, or set these keys back to "
        "continue it"
    )


def _refuse_changed_inputs(path: Path, found: Manifest, present: Manifest) -> None:
    """Raise `RunError` where the start, a template or a task differs from what the run began with.

    Runs of earlier versions recorded less of it; what one of both lacks is not compared.
    """
    records = [manifest.overlap.digests if manifest.overlap else {} for manifest in (found, present)]
    pairs = [
        ("weights of the {}", found.weights, present.weights),
        ("{}", _named(found.inputs), _named(present.inputs)),
        ("records of {}", *records),
    ]
    for named, before, after in pairs:
        if changed := [name for name in before if name in after and before[name] != after[name]]:
            what = ", ".join(named.format(name) for name in changed)
            raise RunError(
                f"{path}: the {what} changed since the run began (digest {before[changed[0]]}, now "
                f"{after[changed[0]]}); put back what was there (a model built by the harness is in HARNESS_CACHE), or choose "
                "another --out"
            )


def _named(inputs: Mapping[str, str]) -> dict[str, str]:
    names = {"start": "configuration or tokenizer of the start", "template": "chat template"}
    return {names.get(name, name): value for name, value in inputs.items()}


def read_manifest(run: Path) -> Manifest | None:
    """Return a run's manifest, upgraded from an earlier version, or None where there is none; raises `RunError` for damage."""
    file = run / MANIFEST
    if not file.is_file():
        return None
    return as_record(upgrade(read_sealed(file), str(file)), Manifest, file)


def is_finished(spec: RunSpec) -> bool:
    """Return whether a run's directory holds a finished run of the same configuration with all of its cells."""
    store = RunStore(spec.path)
    manifest = store.manifest
    if manifest is None or not manifest.finished or not is_of(manifest, spec.config_hash, mask(spec.config())):
        return False
    folders = [store.stage(0), *(store.stage(stage.index, stage.name) for stage in spec.stages)]
    trained = all(folder.training_done for folder in folders[1:])
    further = [cell_name(task, name) for name in list(manifest.profiles)[1:] for task in manifest.profiles[name]]
    cells = [*spec.trained, *manifest.probes, *further]
    evaluated = all(folder.evaluated(cell) for folder in folders for cell in cells)
    drifted = spec.suite.evaluation.drift is None or all(written(folder.drift) for folder in folders)
    noise, start = manifest.noise, folders[0]
    repeats = (
        [start.noise(cell, number) for cell in noise.cells for number in range(1, noise.repeats + 1)] if noise else []
    )
    return trained and evaluated and drifted and all(map(written, repeats))


def is_run_directory(folder: Path) -> bool:
    """Whether a folder holds a run; a manifest.json of other software does not count."""
    manifest = folder / MANIFEST
    return manifest.is_file() and '"config_hash"' in manifest.read_text(encoding="utf-8", errors="replace")


def is_of(found: Manifest, config_hash: str, config: Mapping[str, Any]) -> bool:
    """Return whether a manifest is of a configuration: an earlier version may have hashed keys that may change now."""
    return found.config_hash == config_hash or identity_of(found.config) == identity_of(config)
