"""A penalty on the KL to the stage's start, so that the student stays near the model that it was.

It adds beta (log q(y_t) - log q_0(y_t))^2 / 2 per response token. On the student's own samples its expected gradient is that
of beta KL(q || q_0) ("k2" in J. Schulman, Approximating KL divergence, 2020). On other responses it is not, so trainers that
use other responses are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from adapters.wrappers.wrapper import PenaltyWrapper, penalised
from harness.adapter import Penalties, Requirements, StageContext


class KLToStart(PenaltyWrapper):
    """Keep the student near the model that the stage began with."""

    formula: ClassVar[str] = "that of the wrapped trainer + beta (log q(y_t) - log q_0(y_t))^2 / 2"
    paper: ClassVar[str] = "Schulman 2020, Approximating KL divergence (k2)"

    beta: float = Field(default=0.1, gt=0, description="factor on the penalty, in units of the wrapped loss")

    @model_validator(mode="after")
    def _start_stays_and_student_samples(self) -> KLToStart:
        if self.inner.capabilities.moves_reference:
            raise ValueError(
                f"{self.of.adapter!r} with these options moves the copy of the start that this penalty is measured from; "
                "wrap another trainer, or keep the copy fixed (ema_rate: 0)"
            )
        if not self.inner.capabilities.trains_on <= {"student"}:
            raise ValueError(
                f"{self.of.adapter!r} with these options trains on responses that are not the student's own, on which this "
                "penalty is not the KL to the start; wrap an on-policy trainer"
            )
        return self

    @property
    def requirements(self) -> Requirements:
        """What the wrapped adapter needs, and a copy of the stage's start."""
        return replace(self.inner.requirements, reference=True)

    def changed(self, ctx: StageContext) -> StageContext:
        """Return the stage with the penalty."""
        return penalised(ctx, Penalties(token=(self._penalty,)))

    def _penalty(self, logq: Tensor, logref: Tensor) -> Tensor:
        return 0.5 * self.beta * (logq - logref) ** 2
