"""The key of a stage that all methods share: the digest of all that decides its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.adapter import uses_teacher
from harness.config.base import digest
from harness.config.run_spec import PlannedStage, identity_of
from harness.config.suite import Suite
from harness.lmeval.grader_source import items_digest
from harness.pipeline.resources import RunResources
from harness.rundir.process.session import this_session
from harness.rundir.store import RunStore


def shared_key(resources: RunResources, stage: PlannedStage) -> str:
    """Return the digest of all that decides a shared stage's weights: the run up to that stage, without its method."""
    spec, suite = resources.spec, resources.suite
    config = identity_of(spec.config())
    apart = {"name", "adapter", "probes", "evaluation", "stages", "teacher"}
    before = spec.stages[: stage.index]
    manifest = RunStore(spec.path).manifest
    parts: dict[str, Any] = {
        "suite": {key: value for key, value in config.items() if key not in apart},
        "stages": [_without_teacher(settings) for settings in config["stages"][: stage.index]],
        "steps": [planned.training.steps for planned in before],
        "teachers": [_teacher(resources, planned) for planned in before],
        "curve": _curve_settings(suite),
        "rollouts": suite.keep_rollouts,
        "start": [resources.weights["start"], resources.model_files()],
        **({"from": resources.weights[f"stage_{stage.index - 1}"]} if stage.index > 1 else {}),
        "records": manifest.overlap.digests if manifest and manifest.overlap else None,
        "items": _items(resources, before),
        "made with": [resources.device, this_session().packages],
    }
    return digest(parts)


def _without_teacher(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "teacher"}


def _teacher(resources: RunResources, stage: PlannedStage) -> list[Any] | None:
    """Return the identity of the teacher that a stage uses: its settings, and its digest where the run knows it already.

    Where it is served and how long its answers may take do not count. Its paths count whole, since no digest may be known.
    """
    if stage.teacher is None or not uses_teacher(resources.spec, stage):
        return None
    settings = identity_of({"teacher": stage.teacher.model_dump(mode="json")}, paths="whole")["teacher"]
    return [settings, resources.weights.get(stage.teacher_name)]


def _items(resources: RunResources, stages: Sequence[PlannedStage]) -> list[str]:
    """Return digests of what stages train on: each task's prompts and references, as they are rendered."""
    trained = [(resources.tasks[task], stage.training.train_items) for stage in stages for task in stage.trains]
    return [items_digest(task.training_examples(resources.renderer, limit)) for task, limit in trained]


def _curve_settings(suite: Suite) -> list[Any]:
    """Return what decides a stage's learning curve, next to the weights."""
    evaluation, probes = suite.evaluation, suite.probes
    if evaluation.every is None:
        return [None, evaluation.curve_items, probes]
    decoding = evaluation.all_profiles[evaluation.profile_of_curves].over(evaluation.decoding)
    drawn = [evaluation.seed, evaluation.limit, evaluation.curve_answers, decoding.model_dump(mode="json")]
    return [evaluation.every, evaluation.curve_items, probes, *drawn]
