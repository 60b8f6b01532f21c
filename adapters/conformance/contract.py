"""Checks of the contract that every adapter keeps, with any trainer: its options, budget, seed and snapshots."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from adapters.conformance.outcomes import ConformanceError, DoesNotApply
from adapters.conformance.small_stage import AdapterUnderTest, train_small_stage
from harness.adapter import StageContext

STEPS, STOPPED_AFTER = 4, 2


def are_frozen(subject: AdapterUnderTest) -> None:
    """Options are a frozen pydantic model, so that a run's manifest states what it was trained with."""
    adapter = subject.adapter
    if not isinstance(adapter, BaseModel):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConformanceError(
            f"{type(adapter).__name__} is not a pydantic model; derive it from `harness.adapter.Adapter`"
        )
    if not adapter.model_config.get("frozen"):
        raise ConformanceError("its options can be changed after they were read; keep `frozen=True` of `Adapter`")


def are_described(subject: AdapterUnderTest) -> None:
    """Every option has a description."""
    fields = type(subject.adapter).model_fields
    if bare := [name for name, field in fields.items() if not field.description]:
        raise ConformanceError(
            f"option {', '.join(bare)} has no description; say what it does in `Field(description=...)`"
        )


def refuse_unknown_keys(subject: AdapterUnderTest) -> None:
    """An option that does not exist is refused."""
    known = subject.adapter.model_dump()
    try:
        type(subject.adapter).model_validate({**known, "no_such_option": 1})
    except ValidationError:
        return
    raise ConformanceError(
        "the unknown option `no_such_option: 1` is accepted silently; keep `extra='forbid'` of `Adapter`"
    )


def are_read_back(subject: AdapterUnderTest) -> None:
    """Options written out and read again are the same, defaults included."""
    again = type(subject.adapter).model_validate(subject.adapter.model_dump())
    if again != subject.adapter:
        raise ConformanceError(
            "its options, written out and read again, are others; make every option a plain value that pydantic reads back"
        )


def trains(subject: AdapterUnderTest) -> None:
    """The steps that a stage reports are its budget and change the weights; a stage without steps changes nothing."""
    ctx = _stage(subject)
    before = _weights(ctx)
    steps = train_small_stage(subject.adapter, ctx).steps
    changed = _differ(before, _weights(ctx))
    if changed != (steps > 0):
        raise ConformanceError(
            f"it reports {steps} steps, but the weights {'changed' if changed else 'did not change'}"
        )
    if steps not in (0, STEPS):
        raise ConformanceError(
            f"it took {steps} steps of the stage's {STEPS}; the budget is the same for every adapter"
        )


def repeats_with_its_seed(subject: AdapterUnderTest) -> None:
    """The same seed gives the same weights, to the bit."""
    first, second = (_trained(subject, _stage(subject)) for _ in range(2))
    if _differ(first, second):
        raise ConformanceError(
            "two runs with one seed end with other weights; derive every random draw from `ctx.seed`"
        )


def resumes(subject: AdapterUnderTest) -> None:
    """A stage that was stopped and taken up from its snapshot ends with the weights of an undisturbed one, to the bit."""
    undisturbed = _trained(subject, _stage(subject))
    kept = MemorySnapshots(stop_at=STOPPED_AFTER)
    try:
        train_small_stage(subject.adapter, replace(_stage(subject), snapshots=kept))
    except Killed:
        pass
    else:
        raise DoesNotApply("it keeps no snapshots, so a stage that was stopped begins again")
    resumed = _trained(subject, replace(_stage(subject), snapshots=MemorySnapshots(kept.state)))
    if _differ(undisturbed, resumed):
        raise ConformanceError(
            f"a stage of {STEPS} steps, stopped after {STOPPED_AFTER} and taken up from its snapshot, ends with other "
            "weights; keep and restore student, optimiser, schedule and generators"
        )


class Killed(BaseException):
    """Stands for a kill of the process; no adapter catches it."""


@dataclass
class MemorySnapshots:
    """Keeps one snapshot in memory, written by `torch.save` as to a file; taking it at step `stop_at` kills the stage."""

    state: bytes | None = None
    stop_at: int | None = None

    def load(self) -> dict[str, Any] | None:
        """See `harness.rundir.training.snapshots.Snapshots`."""
        return None if self.state is None else torch.load(io.BytesIO(self.state), weights_only=True)

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """See `harness.rundir.training.snapshots.Snapshots`."""
        if step == self.stop_at:
            buffer = io.BytesIO()
            torch.save({"step": step, **state()}, buffer)
            self.state = buffer.getvalue()
            raise Killed


def _stage(subject: AdapterUnderTest) -> StageContext:
    """Return a stage in which the student answers and the reference is the stage's start, as in a run."""
    return subject.stage(steps=STEPS, dtype=torch.float32, scripted=False, reference_seed=0)


def _trained(subject: AdapterUnderTest, ctx: StageContext) -> dict[str, Tensor]:
    train_small_stage(subject.adapter, ctx)
    return _weights(ctx)


def _weights(ctx: StageContext) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in ctx.student.model.state_dict().items()}


def _differ(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() != two.keys() or any(not torch.equal(value, two[name]) for name, value in one.items())
