"""Runs that start from a finished stage of another run, so that several methods continue from one checkpoint.

The checkpoint is the run's start and is evaluated as such. If the other run has the same suite, its stages up to the
checkpoint are not trained again: their tasks are evaluated with the probes, so that retention is measured from the common
start; figures and claims on probes leave them out. If it has another suite, such as a warm-up, all stages are trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config.models import Pretrained
from harness.config.run_spec import RunSpec
from harness.config.suite import Origin, Suite, TrainedBefore
from harness.errors import ConfigError, RunError
from harness.lm.checkpoints import weights_digest
from harness.rundir.retention import note_start
from harness.rundir.schema import Manifest
from harness.rundir.shared.remote_stages import is_done
from harness.rundir.stage_folder import stage_folder
from harness.rundir.store import read_manifest

STAGE = re.compile(r"^stage_([1-9]\d*)(_.*)?$")


def start_from(spec: RunSpec, place: str) -> RunSpec:
    """Return the run that starts from the stage at `place`, a path such as RUN/stage_1, where {seed} is the run's seed.

    Raises `ConfigError` for a path that is not a stage and for a suite that has no stage left, `RunError` for a stage that is
    not finished or whose weights differ from those that its run recorded. Where its checkpoint is gone, the run must be done.
    """
    path = Path(place.replace("{seed}", str(spec.seed)))
    named = STAGE.match(path.name)
    manifest = read_manifest(path.parent) if named else None
    if named is None or manifest is None:
        raise ConfigError(
            f"--from {path}: expected a run directory and one of its stages, for example runs/tiny/sft/default/seed0/stage_1"
        )
    stage = int(named[1])
    if stage > len(manifest.stages):
        raise ConfigError(f"--from {path}: that run has {len(manifest.stages)} stages; name one of them")
    folder = stage_folder(path.parent, stage, manifest.stages[stage - 1].name)
    if (done := folder.training_done) is None:
        raise RunError(f"--from {path}: stage {stage} is not finished; finish it with {manifest.made.command!r}")
    kept = folder.checkpoint.is_dir()
    if kept and (present := weights_digest(folder.checkpoint)) != done.weights:
        raise RunError(
            f"--from {path}: the checkpoint's weights have digest {present}, but its run recorded {done.weights}; restore it "
            "from a copy"
        )
    origin = Origin(
        path=str(folder.path.resolve()),
        suite=manifest.suite,
        adapter=manifest.adapter,
        order=manifest.order,
        seed=manifest.seed,
        stage=stage,
        weights=done.weights,
        config_hash=manifest.config_hash,
        trained=tuple(_trained(manifest, stage)),
    )
    suite = _remaining(spec, origin) if manifest.suite == spec.suite.name else spec.suite
    student = Pretrained(
        kind="pretrained",
        path=str(folder.checkpoint.resolve()),
        chat=suite.student.chat,
        dtype=suite.student.dtype,
        start=f"{manifest.adapter}-{manifest.stages[stage - 1].name}",
    )
    branch = replace(spec, suite=suite.model_copy(update={"student": student, "origin": origin}))
    if not kept and not is_done(branch):
        raise RunError(
            f"--from {path}: the stage's checkpoint was not kept; restore it from a copy, or run that run again elsewhere"
        )
    return branch


def note_starts(specs: Sequence[RunSpec]) -> None:
    """Keep the checkpoints of other runs from which runs will start, also those that wait for their turn in a sweep."""
    for spec in specs:
        if spec.suite.origin is not None and isinstance(spec.suite.student, Pretrained):
            note_start(Path(spec.suite.student.path), spec.path)


def _trained(manifest: Manifest, stage: int) -> list[TrainedBefore]:
    """Return what a run trained up to a stage, including what its own start had been trained on."""
    earlier = (manifest.config.get("origin") or {}).get("trained", [])
    planned = manifest.config.get("stages") or []
    method: dict[str, Any] = manifest.config.get("adapter") or {}
    limits: dict[str, int | None] = {}
    for each in planned:
        changed = (each.get("adapter") or method).get("training") or {}
        limits[each["task"]] = {**(each.get("training") or {}), **changed}.get("train_items")
    own = [
        TrainedBefore(task=task, items=limits.get(record.name))
        for record in manifest.stages[:stage]
        for task in record.trains
    ]
    return [*map(TrainedBefore.model_validate, earlier), *own]


def _remaining(spec: RunSpec, origin: Origin) -> Suite:
    """Return the suite with the stages that the other run has not trained; the tasks of the others are among its probes."""
    ordered = spec.suite.ordered_stages(spec.order)
    # The other run may itself have started from a run of another suite, such as a warm-up.
    done = [before.task for before in origin.trained if before.task in spec.trained]
    behind = next((k for k in range(len(ordered) + 1) if [t for s in ordered[:k] for t in s.trains] == done), None)
    if behind is None:
        raise ConfigError(
            f"--from: the other run trained {', '.join(done)}, but order {spec.order} of suite {spec.suite.name} trains "
            f"{', '.join(spec.trained)}; choose the same --order"
        )
    if not (left := ordered[behind:]):
        raise ConfigError(f"--from: suite {spec.suite.name} has no stage after {done[-1]}; name an earlier stage")
    orders = {} if spec.order == "default" else {spec.order: tuple(each.task for each in left)}
    changes = {"stages": left, "probes": (*done, *spec.suite.probes), "orders": orders}
    return spec.suite.model_copy(update=changes)
