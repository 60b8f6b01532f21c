"""Asymmetric on-policy distillation (AOPD, arXiv 2605.06387): forward KL where the student overrates its token, OPD elsewhere.

L = E[1/|y| sum_t (G_t FKL_t + (1 - G_t) OPD_t)]. Where the advantage is not positive (G_t = 1), the policy gradient would only
lower the sampled token; AOPD replaces it by forward KL on the teacher's top K, which raises other tokens. Where paper and
official code differ, an option chooses; the defaults are the paper's.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adapters.loop.divergences import Tail, top_k_forward_kl
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.opd import PolicyGradient
from harness.adapter import Needs
from harness.lm.logprobs import TeacherRequest


class AOPD(PolicyGradient):
    """OPD on tokens that the teacher finds more probable than the student, forward KL on the teacher's top K elsewhere."""

    formula: ClassVar[str] = (
        "G_t fkl_weight FKL_t - (1 - G_t) weight A_t log q(y_t), G_t = 1 where A_t <= -threshold, FKL_t = sum over the "
        "teacher's top K of p (log p - log q), y ~ q"
    )
    paper: ClassVar[str] = "arXiv 2605.06387"
    deviation: ClassVar[str] = (
        "The defaults are the paper's. Options where the official code differs: gate prob_diff, reduction micro_batch_mean, "
        "clip 0.2, dual_clip 3, weight 1.25, fkl_weight. Its jsd_beta is left out."
    )
    teacher_needs: ClassVar[Needs] = "top_k"

    top_k: int = Field(default=32, gt=0, description="the teacher's most probable tokens that forward KL runs over")
    gate: Literal["log_ratio", "prob_diff"] = Field(
        default="log_ratio", description="paper: log_ratio; official code: prob_diff"
    )
    threshold: float = Field(
        default=0.0, description="how far the student must overrate a token before it is routed to forward KL"
    )
    fkl_weight: float = Field(default=1.0, gt=0, description="factor on forward KL; gkd_weight in the official code")
    tail: Tail = Field(default="none", description="how forward KL treats the mass outside the top K")
    symmetric: bool = Field(default=False, description="route tokens that the student underrates too")

    @model_validator(mode="after")
    def _symmetric_leaves_a_policy_gradient(self) -> AOPD:
        if self.symmetric and -math.inf < self.threshold <= 0:
            raise ValueError(
                f"symmetric with threshold {self.threshold:g} sends every token to forward KL, overrated or not; set a "
                "threshold above 0 (-.inf is forward KL everywhere)"
            )
        return self

    @property
    def teacher_request(self) -> TeacherRequest:
        """The teacher's top K for the forward KL, with the mass outside for `tail: bucket`."""
        return TeacherRequest(top_k=self.top_k, rest=self.tail == "bucket")

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return FKL_t where G_t is 1 and -A_t log q(y_t) elsewhere, (N,), and G_t."""
        routed = self.routed(tokens)
        forward = self.fkl_weight * top_k_forward_kl(tokens, self.tail)
        losses = torch.where(routed, forward, self.policy_gradient(tokens))
        return TokenLosses(losses, routed)

    def routed(self, tokens: Tokens) -> Tensor:
        """Return the gate G_t, (N,) of bool.

        `log_ratio`: log q - log p >= threshold, so with threshold 0 tokens with A_t <= 0 are routed to forward KL; -inf is
        pure forward KL, +inf pure OPD. `prob_diff`: q - p > threshold, strictly; -1 is pure forward KL, +1 pure OPD.
        """
        if self.gate == "log_ratio":
            overshoot = -tokens.advantage
            return (overshoot.abs() if self.symmetric else overshoot) >= self.threshold
        overshoot = tokens.logq_old.exp() - tokens.logp.exp()
        return (overshoot.abs() if self.symmetric else overshoot) > self.threshold
