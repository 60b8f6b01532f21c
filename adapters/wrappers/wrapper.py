"""Wrappers: methods against forgetting that compose with a trainer, `of` which they name.

adapter: replay
options: {share: 0.2, of: aopd}
options: {share: 0.2, of: {adapter: ewc, options: {of: {adapter: aopd, options: {top_k: 16}}}}}
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from harness.adapter import Adapter, Penalties, Requirements, StageContext, StageResult, make_adapter
from harness.config.base import Strict
from harness.config.suite import AdapterEntry
from harness.config.training import Training
from harness.errors import ConfigError


class Inner(Strict):
    """The wrapped trainer: a registered name and its options."""

    adapter: str
    options: dict[str, Any] = Field(default_factory=dict)


class Wrapper(Adapter):
    """Trains through another adapter, with something changed about the stage."""

    adds_penalty: ClassVar[bool] = False
    holds_weights: ClassVar[bool] = False

    of: Inner = Field(description="the trainer: its name, or `adapter` and `options`")

    @field_validator("of", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"adapter": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _inner_fits(self) -> Wrapper:
        try:
            inner = self.inner
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.holds_weights and inner.replaces_weights:
            raise ValueError(
                f"{self.of.adapter!r} trains other weights than the model's own; put this wrapper inside it"
            )
        if self.replaces_weights and inner.needs_whole_weights:
            raise ValueError(
                f"{self.of.adapter!r} with these options needs the model's own weights, and this wrapper trains others; "
                "leave it out"
            )
        if self.adds_penalty and not inner.penalisable:
            raise ValueError(f"{self.of.adapter!r} has a loss of its own, which takes no penalty; wrap another trainer")
        return self

    @cached_property
    def inner(self) -> Adapter:
        """The wrapped adapter."""
        return make_adapter("of", AdapterEntry(adapter=self.of.adapter, options=self.of.options))

    @property
    def requirements(self) -> Requirements:
        """What the wrapped adapter asks for."""
        return self.inner.requirements

    @property
    def penalisable(self) -> bool:
        """Whether the wrapped adapter is."""
        return self.inner.penalisable

    @property
    def replaces_weights(self) -> bool:
        """Whether the wrapped adapter does."""
        return self.inner.replaces_weights

    @property
    def needs_whole_weights(self) -> bool:
        """Whether the wrapped adapter does."""
        return self.inner.needs_whole_weights

    @property
    def moves_reference(self) -> bool:
        """Whether the wrapped adapter does."""
        return self.inner.moves_reference

    @property
    def off_policy(self) -> bool:
        """Whether the wrapped adapter is."""
        return self.inner.off_policy

    def refuse(self, training: Training) -> None:
        """Refuse what the wrapped adapter refuses."""
        self.inner.refuse(training)

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train the wrapped adapter on the changed stage."""
        return self.inner.train_stage(self.changed(ctx))

    def changed(self, ctx: StageContext) -> StageContext:
        """Return the stage as the wrapped adapter is to see it."""
        return ctx


def penalised(ctx: StageContext, penalties: Penalties) -> StageContext:
    """Return the stage with penalties beside those that it has."""
    return replace(ctx, penalties=ctx.penalties + penalties)
