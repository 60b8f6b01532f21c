"""TrOPD (arXiv 2606.01249): policy gradient where the teacher accepts the student's token, forward KL where it does not.

The teacher accepts a token with probability min(p(y_t) / q(y_t), 1), as in speculative decoding. An accepted token has the
policy-gradient loss, a rejected one the forward KL on the teacher's top K.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.loop.divergences import top_k_forward_kl
from adapters.loop.tokens import TokenLosses, Tokens, require
from adapters.opd import PolicyGradient
from harness.adapter import Needs
from harness.lm.logprobs import TeacherRequest


class TrOPD(PolicyGradient):
    """OPD on tokens that the teacher accepts, top-K forward KL on the others."""

    formula: ClassVar[str] = "-M_t A_t log q(y_t) + (1 - M_t) FKL_t, M_t ~ Bernoulli(min(p / q, 1)), y ~ q"
    paper: ClassVar[str] = "arXiv 2606.01249"
    deviation: ClassVar[str] = (
        "The off-policy guidance (prefixes of the teacher, beta 0.001, cosine-annealed) is left out. The gate and K follow "
        "secondary sources, because no official code has been released."
    )
    teacher_needs: ClassVar[Needs] = "top_k"
    draws_uniform: ClassVar[bool] = True

    top_k: int = Field(default=64, gt=0, description="the teacher's most probable tokens that forward KL runs over")
    gate: Literal["sampled", "threshold"] = Field(
        default="sampled", description="paper: sampled; threshold rejects every token whose trust is below `trust`"
    )
    trust: float = Field(
        default=0.1, gt=0, le=1, description="for gate: threshold, the trust below which a token is rejected"
    )

    @property
    def teacher_request(self) -> TeacherRequest:
        """The teacher's tokens that the forward KL runs over."""
        return TeacherRequest(top_k=self.top_k)

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return FKL_t for rejected tokens and -A_t log q(y_t) for accepted ones, (N,), and which are rejected."""
        bound = require(tokens.uniform, "uniform draws") if self.gate == "sampled" else self.trust
        # Draws are below 1, so a token with a trust of 1 is always accepted.
        rejected = trust_of(tokens) <= bound if self.gate == "sampled" else trust_of(tokens) < bound
        return TokenLosses(torch.where(rejected, top_k_forward_kl(tokens), self.policy_gradient(tokens)), rejected)


def trust_of(tokens: Tokens) -> Tensor:
    """Return min(p / q, 1) at each token, (N,)."""
    return tokens.advantage.exp().clamp(max=1.0)
