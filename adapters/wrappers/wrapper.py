"""Bases of wrappers: adapters that change the stage of another trainer, which the option `of` names.

adapter: replay
options: {share: 0.2, of: aopd}
options: {share: 0.2, of: {adapter: ewc, options: {of: {adapter: aopd, options: {top_k: 16}}}}}
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator, model_validator

from harness.adapter import Adapter, Capabilities, Penalties, Requirements, StageContext, StageResult, make_adapter
from harness.config.base import Strict
from harness.config.suite import AdapterEntry
from harness.config.training import Training
from harness.errors import ConfigError


class Inner(Strict):
    """The wrapped trainer: a registered name and its options."""

    adapter: str
    options: dict[str, Any] = Field(default_factory=dict)


class Wrapper(Adapter):
    """Base of the wrappers: trains the wrapped adapter on a changed stage."""

    of: Inner = Field(description="the trainer: its name, or `adapter` and `options`")

    @field_validator("of", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"adapter": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _inner_is_an_adapter(self) -> Wrapper:
        try:
            _ = self.inner
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @cached_property
    def inner(self) -> Adapter:
        """The wrapped adapter."""
        return make_adapter("of", AdapterEntry(adapter=self.of.adapter, options=self.of.options))

    @property
    def requirements(self) -> Requirements:
        """What the wrapped adapter needs."""
        return self.inner.requirements

    @property
    def capabilities(self) -> Capabilities:
        """What the wrapped adapter does."""
        return self.inner.capabilities

    def refuse(self, training: Training) -> None:
        """Raise `ConfigError` for a budget that the wrapped adapter refuses."""
        self.inner.refuse(training)

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train the wrapped adapter on the changed stage."""
        return self.inner.train_stage(self.changed(ctx))

    def changed(self, ctx: StageContext) -> StageContext:
        """Return the stage for the wrapped adapter; by default, the same one."""
        return ctx


class PenaltyWrapper(Wrapper):
    """Base of the wrappers that add a penalty to the wrapped trainer's loss, in `changed`, by `penalised`."""

    @model_validator(mode="after")
    def _inner_takes_penalties(self) -> PenaltyWrapper:
        if not self.inner.capabilities.takes_penalties:
            raise ValueError(f"{self.of.adapter!r} has its own loss, which takes no penalty; wrap another trainer")
        return self


def penalised(ctx: StageContext, penalties: Penalties) -> StageContext:
    """Return the stage with `penalties` added to those that it has."""
    return replace(ctx, penalties=ctx.penalties + penalties)
