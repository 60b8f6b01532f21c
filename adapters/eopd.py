"""EOPD (arXiv 2603.07079): OPD, and forward KL in addition where the teacher is uncertain.

L_t = OPD_t (clipped) + 1[H(p) > threshold] FKL_t on the teacher's top 16. At such positions the student keeps the teacher's
alternatives.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from adapters.loop.divergences import top_k_forward_kl
from adapters.loop.tokens import TokenLosses, Tokens, require
from adapters.opd import PolicyGradient
from harness.adapter import Needs
from harness.lm.logprobs import TeacherRequest


class EOPD(PolicyGradient):
    """OPD everywhere, and forward KL in addition where the teacher is uncertain."""

    formula: ClassVar[str] = "-A_t log q(y_t), clipped, + 1[H(p) > threshold] FKL_t, y ~ q"
    paper: ClassVar[str] = "arXiv 2603.07079"
    deviation: ClassVar[str] = "Clip, K and normalisation are taken from secondary sources."
    teacher_needs: ClassVar[Needs] = "top_k"

    clip: float | None = Field(default=0.2, gt=0, lt=1, description="PPO ratio clip")
    top_k: int = Field(default=16, gt=0, description="the teacher's most probable tokens that forward KL runs over")
    threshold: float = Field(
        default=0.8, ge=0, description="the teacher's entropy in nats above which forward KL is added"
    )

    @property
    def teacher_request(self) -> TeacherRequest:
        """The teacher's top K and its entropy."""
        return TeacherRequest(top_k=self.top_k, entropy=True)

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the sum of both terms, (N,), and where the second one is on."""
        unsure = require(tokens.entropy_p, "entropy") > self.threshold
        extra = torch.where(unsure, top_k_forward_kl(tokens), 0.0)
        return TokenLosses(self.policy_gradient(tokens) + extra, unsure)
