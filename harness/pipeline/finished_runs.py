"""Which runs are left to do, and whether a finished run has the models that a command names.

A run's identity has only the last part of a local path, and two checkpoints may both be named `hf`; their digests differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config.run_spec import RunSpec
from harness.errors import RunError
from harness.lm.checkpoints import weights_digest
from harness.rundir.shared.remote_stages import RemoteStages
from harness.rundir.store import is_finished, read_manifest


def left_to_do(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs that are not done; raises `RunError` for a finished run of other models, see `is_finished_run`."""
    return [spec for spec in specs if not is_finished_run(spec) or RemoteStages.of(spec).lacks_end()]


def is_finished_run(spec: RunSpec) -> bool:
    """Return whether a run is finished.

    Raises `RunError` where it is, and the configuration names a model in another folder with other weights. A folder that is
    not on this machine is not compared.
    """
    if not is_finished(spec) or (manifest := read_manifest(spec.path)) is None:
        return False
    before = dict(_models(manifest.config))
    for (key, name), path in _models(spec.config()):
        recorded = manifest.weights.get(name)
        if recorded is None or path == before.get((key, name)) or not Path(path).is_dir():
            continue
        if (present := weights_digest(Path(path))) != recorded:
            raise RunError(
                f"{spec.path} holds a finished run with another {key}: {path} has weights with digest {present}, expected "
                f"{recorded}, those of {before.get((key, name))}; set {key} back, or choose another --out"
            )
    return True


def _models(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the path of the student and of each teacher, by its key in the configuration and its name in the manifest."""
    named: list[tuple[str, str, Any]] = [("student", "start", config.get("student"))]
    named.append(("teacher", "teacher", config.get("teacher")))
    for place, stage in enumerate(config.get("stages") or ()):
        named.append((f"stages.{place}.teacher", f"stage_{place + 1}_teacher", stage.get("teacher")))
    for key, name, model in named:
        if model and model.get("kind") == "pretrained":
            yield (f"{key}.path", name), str(model["path"])
