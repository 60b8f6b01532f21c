"""Find how two methods' runs differ besides the method: teacher, stages, budget, and every other setting.

A difference in scores may come from any of these, so comparisons name them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.config.base import is_mapping, merge
from harness.config.run_spec import identity_of
from harness.config.teacher_identity import same_teacher
from harness.rundir.differences import find_differences
from harness.rundir.reader import RunDir
from reports.data.frames import Frames
from reports.data.methods import Method, by_start, methods_of

BUDGET = ("steps", "prompts_per_step", "num_generations", "max_new_tokens", "train_items")
APART = ("name", "seed", "adapter", "training", "stages", "teacher", "evaluation")  # compared in other places
LONGEST = 60  # characters of a value


def describe_differences(one: Method, other: Method) -> list[str]:
    """Return a sentence on differing teacher, stages or budget, and one on all other settings that differ."""
    runs = (one.first, other.first)
    small = [*_training(*runs, budget=False), *_others(*runs)]
    settings = [f"{one.name} and {other.name} differ in settings: {'; '.join(small)}."] if small else []
    return [*describe_unlike(one, other), *settings]


def differences_of_report(frames: Frames) -> list[str]:
    """Return these sentences for each method of a report, against the first of its suite, order and start; no controls."""
    groups = by_start(method for method in methods_of(frames) if not method.control)
    return [
        sentence
        for base, *others in groups.values()
        for other in others
        for sentence in describe_differences(base, other)
    ]


def describe_unlike(one: Method, other: Method) -> list[str]:
    """Return the sentence on teacher, stages and budget where one of them differs."""
    runs = (one.first, other.first)
    large = [*_teachers(one, other), *_stages(*runs), *_training(*runs, budget=True)]
    return [f"{one.name} and {other.name} differ in more than the method: {'; '.join(large)}."] if large else []


def _teachers(one: Method, other: Method) -> Iterator[str]:
    configs = [method.first.manifest.config.get("teacher") or {} for method in (one, other)]
    if found := find_differences(*configs):
        yield f"teacher ({_listed(found)})"
        return
    named = [
        {run.seed: teacher for run in method.frames.runs if (teacher := run.manifest.weights.get("teacher"))}
        for method in (one, other)
    ]
    if not all(same_teacher(named[0][seed], named[1][seed]) for seed in named[0].keys() & named[1].keys()):
        yield "teacher (its weights or configuration)"


def _stages(one: RunDir, other: RunDir) -> Iterator[str]:
    if one.trains != other.trains:
        yield f"stages ({', then '.join(one.stages)} and {', then '.join(other.stages)})"


def _training(one: RunDir, other: RunDir, *, budget: bool) -> Iterator[str]:
    """Yield the training settings that differ, each with its values in the first stage where it differs."""
    settings, found = [_training_of(run) for run in (one, other)], dict[str, tuple[Any, Any]]()
    for stage, training in settings[0].items():
        for key, values in find_differences(training, settings[1].get(stage, training)).items():
            if (key in BUDGET) == budget:
                found.setdefault(f"training.{key}", values)
    if found:
        yield _listed(found)


def _training_of(run: RunDir) -> dict[str, dict[str, Any]]:
    """Return each stage's training settings by the stage's task, the adapter entry's own settings included."""
    config = identity_of(run.manifest.config)
    own = (config.get("adapter") or {}).get("training") or {}
    plain = config.get("training") or {}
    stages = [stage for stage in config.get("stages") or [] if is_mapping(stage)]
    return {str(stage.get("task")): merge(stage.get("training") or plain, own) for stage in stages}


def _others(one: RunDir, other: RunDir) -> Iterator[str]:
    configs = [_by_name(identity_of(run.manifest.config)) for run in (one, other)]
    if found := find_differences(*configs):
        yield _listed(found)


def _by_name(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the keys in APART; evaluation profiles, a list in the file, are keyed by name."""
    evaluation = dict(config.get("evaluation") or {})
    profiles = evaluation.get("profiles")
    if isinstance(profiles, list):
        evaluation["profiles"] = {each["name"]: each for each in profiles}
    return {**{key: value for key, value in config.items() if key not in APART}, "evaluation": evaluation}


def _listed(found: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} ({_short(one)} and {_short(other)})" for name, (one, other) in found.items())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
