"""Whether a suite and this machine can serve the adapters that a command names; loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from harness.adapter import Adapter, make_adapter
from harness.config.models import Pretrained, Scratch
from harness.config.processor import has_bfloat16
from harness.config.suite import AdapterEntry, Stage, Suite
from harness.errors import ConfigError


def check_adapters(suite: Suite, entries: Collection[str] | None = None) -> dict[str, Adapter]:
    """Return every adapter of a suite by its entry's name.

    Raises `ConfigError` for an entry that cannot be built, and for one of `entries` (None: all) whose teacher, budget or
    precision the suite does not provide, or that cannot run on this machine.
    """
    adapters = {name: make_adapter(name, entry) for name, entry in suite.adapters.items()}
    chosen = {name: adapter for name, adapter in adapters.items() if entries is None or name in entries}
    fixed = [stage for stage in suite.stages if stage.adapter is not None]
    _refuse_narrow_weights(suite, [name for name in chosen if (suite.adapters[name].adapter or name) != "none"])
    for stage in fixed:
        own = stage.adapter or AdapterEntry()
        _refuse(suite, next(iter(suite.adapters)), make_adapter(str(own.adapter), own), [stage], f"stage {stage.task}")
    for name, adapter in chosen.items():
        _refuse(suite, name, adapter, [stage for stage in suite.stages if stage.adapter is None], f"adapters.{name}")
    return adapters


def emulated_bfloat16(suite: Suite, entries: Collection[str], device: str) -> str | None:
    """Return a warning where a suite asks for bfloat16 and `device` (cpu, cuda) only emulates it, many times slower."""
    models = {"student": suite.student, "teacher": suite.teacher}
    trainings = [suite.training_for(stage, name) for name in entries for stage in suite.stages]
    keys = [f"{name}.dtype" for name, m in models.items() if isinstance(m, Pretrained) and m.dtype == "bfloat16"]
    keys += [f"{name}.warmup.autocast" for name, m in models.items() if isinstance(m, Scratch) and m.warmup.autocast]
    keys += ["training.precision"] * any(training.precision != "float32" for training in trainings)
    if not keys or has_bfloat16(device):
        return None
    return (
        f"{', '.join(keys)}: bfloat16, for which {device} has no instructions on this machine, so these passes take many "
        "times as long as in float32"
    )


def _refuse_narrow_weights(suite: Suite, names: Sequence[str]) -> None:
    """Raise `ConfigError` for a student in 16 bits without float32 master weights: optimiser steps would round to zero."""
    fixed = [stage.training.precision for stage in suite.stages if stage.adapter is not None]
    precisions = {*fixed, *(suite.training_for(stage, name).precision for name in names for stage in suite.stages)}
    dtype = suite.student.dtype
    if dtype == "float32" or not precisions:
        return
    if dtype == "float16" or precisions != {"bfloat16_master"}:
        raise ConfigError(
            f"student.dtype is {dtype}, in which optimiser steps round to zero; set student.dtype: bfloat16 and "
            "training.precision: bfloat16_master, which keeps float32 master weights, or student.dtype: float32"
        )


def _refuse(suite: Suite, name: str, adapter: Adapter, stages: Sequence[Stage], place: str) -> None:
    needed = adapter.requirements.teacher
    lacking = [s.task for s in stages if suite.teacher is None and s.teacher is None]
    if needed != "none" and lacking:
        raise ConfigError(
            f"{place}: needs a teacher ({needed}), but stages {', '.join(lacking)} have none; name one under `teacher`"
        )
    for stage in stages:
        training = suite.training_for(stage, name)
        if training.staleness and adapter.updates and not adapter.capabilities.takes_stale:
            raise ConfigError(
                f"{place}: training.staleness is {training.staleness}, but the adapter cannot train on stale rollouts; set it "
                "to 0 for this adapter"
            )
        try:
            adapter.refuse(training)
        except ConfigError as error:
            raise ConfigError(
                f"{place}{'' if place.endswith(stage.task) else f', stage {stage.task}'}: {error}"
            ) from error
