"""TrOPD (arXiv 2606.01249): policy gradient where the teacher trusts the student's token, forward KL where it does not.

Trust is min(p(y_t) / q(y_t), 1). Inside the trust region the token's reverse-KL term is kept; an outlier goes to forward KL
on the teacher's top K.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adapters.loop.divergences import top_k_forward_kl
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.opd import PolicyGradient
from harness.adapter import Needs
from harness.lm.logprobs import TeacherRequest


class TrOPD(PolicyGradient):
    """OPD inside the trust region, top-K forward KL outside."""

    paper: ClassVar[str] = "arXiv 2606.01249"
    formula: ClassVar[str] = "-A_t log q(y_t) where p / q >= trust, else FKL_t on the teacher's top K, y ~ q"
    paper: ClassVar[str] = "arXiv 2606.01249"
    deviation: ClassVar[str] = "The gate is a threshold; there is no off-policy guidance."
    teacher_needs: ClassVar[Needs] = "top_k"

    top_k: int = Field(default=32, gt=0, description="the teacher's most probable tokens that forward KL runs over")
    trust: float = Field(default=0.1, gt=0, le=1, description="trust below which a token is an outlier")

    @property
    def teacher_request(self) -> TeacherRequest:
        """The teacher's tokens that the forward KL runs over."""
        return TeacherRequest(top_k=self.top_k)

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return FKL_t for outliers and -A_t log q(y_t) elsewhere, (N,)."""
        outlier = trust_of(tokens) < self.trust
        return TokenLosses(torch.where(outlier, top_k_forward_kl(tokens), self.policy_gradient(tokens)), outlier)


def trust_of(tokens: Tokens) -> Tensor:
    """Return min(p / q, 1) at each token, (N,)."""
    return tokens.advantage.exp().clamp(max=1.0)
