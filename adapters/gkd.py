"""Generalised knowledge distillation (GKD, arXiv 2306.13649): a divergence over the vocabulary, on- and off-policy.

L = E[1/|y| sum_t JSD_beta(p || q)(c_t)], y from the student with probability `lmbda`, else from the data.
"""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from adapters.loop.tokens import TokenLosses, Tokens, require
from adapters.loop.training_loop import LoopAdapter, Objective
from harness.adapter import Needs, Source
from harness.lm.logprobs import TeacherRequest


class FullVocabulary(LoopAdapter):
    """Base of the methods whose loss is a divergence from the teacher over the whole vocabulary."""

    teacher_needs: ClassVar[Needs] = "full"
    depends_on_draw: ClassVar[bool] = False

    @property
    def teacher_request(self) -> TeacherRequest:
        """The teacher's whole distribution."""
        return TeacherRequest(vocabulary=True)

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the divergence at each token, (N,)."""
        return TokenLosses(require(tokens.divergence, "divergence"))


class GKD(FullVocabulary):
    """The generalised Jensen-Shannon divergence; the defaults are TRL's."""

    formula: ClassVar[str] = (
        "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; y ~ q with probability lmbda, else the "
        "reference"
    )
    paper: ClassVar[str] = "Agarwal et al. 2024 (arXiv 2306.13649)"
    deviation: ClassVar[str] = "The defaults are TRL's."

    beta: float = Field(default=0.5, ge=0, le=1, description="0 is forward KL, 1 reverse KL, as in TRL and the paper")
    lmbda: float = Field(default=0.5, ge=0, le=1, description="share of steps whose responses are the student's own")

    @property
    def objective(self) -> Objective | None:
        """The forward KL at `beta` 0, the reverse KL at 1, None between them."""
        ends: dict[float, Objective] = {0.0: "forward_kl", 1.0: "reverse_kl"}
        return ends.get(self.beta)

    @property
    def beta_of_divergence(self) -> float | None:
        """The option `beta`."""
        return self.beta

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data for `lmbda` 0, the student for 1, both between them."""
        if self.lmbda == 1:
            return ("student",)
        return ("student", "data") if self.lmbda else ("data",)

    def source(self, seed: int) -> Source:
        """Return `student` with probability `lmbda`, else `data`."""
        return "student" if random.Random(seed).random() < self.lmbda else "data"
