"""On-policy distillation: the policy gradient of each token's reverse KL on the student's own samples.

L = -E[1/|y| sum_t A_t log q(y_t|c_t)] with A_t = sg[log p(y_t|c_t) - log q(y_t|c_t)] (Thinking Machines 2025; arXiv
2605.06387). Its expected gradient is that of KL(q || p) at fixed states c_t: a token has no credit for the states that it
leads to, unlike in the sequence objective of MiniLLM. The PPO clips are the official AOPD code's options, off as in the paper.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import LoopAdapter, Objective
from harness.adapter import Needs, StageContext, StageResult


class PolicyGradient(LoopAdapter):
    """The policy-gradient term and its options, shared by OPD and AOPD."""

    teacher_needs: ClassVar[Needs] = "sampled"

    weight: float = Field(
        default=1.0, gt=0, description="factor on the policy-gradient term; the official scripts run 1.25"
    )
    clip: float | None = Field(
        default=None, gt=0, lt=1, description="PPO ratio clip, official code 0.2; null is the plain form"
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="bound on the loss of negative advantages, official code 3.0"
    )

    @model_validator(mode="after")
    def _dual_clip_needs_clip(self) -> PolicyGradient:
        if self.dual_clip is not None and self.clip is None:
            raise ValueError("dual_clip bounds the clipped loss; set clip too (the official code uses 0.2 and 3.0)")
        return self

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train as the loop does; warns of several updates without a ratio clip."""
        if self.updates_per_rollout > 1 and self.clip is None:
            ctx.warn(
                f"updates_per_rollout is {self.updates_per_rollout} and clip is null: from the second update on, the policy "
                "gradient is that of an older student, without importance ratio; set clip, or updates_per_rollout: 1"
            )
        return super().train_stage(ctx)

    def policy_gradient(self, tokens: Tokens, advantage: Tensor | None = None) -> Tensor:
        """Return the policy-gradient loss of each token, (N,), with A_t where no other advantage is given."""
        advantage = (tokens.advantage if advantage is None else advantage).detach()
        if self.clip is None:
            return -self.weight * advantage * tokens.logq
        return self.weight * clipped_policy_gradient(tokens, advantage, self.clip, self.dual_clip)


class OPD(PolicyGradient):
    """Reinforce every sampled token by how much more probable the teacher finds it."""

    formula: ClassVar[str] = "-A_t log q(y_t), A_t = log p(y_t) - log q(y_t) without gradient, y ~ q"
    paper: ClassVar[str] = "Thinking Machines 2025, On-Policy Distillation; the baseline of AOPD (arXiv 2605.06387)"

    @property
    def objective(self) -> Objective | None:
        """The reverse KL; a weight scales it."""
        return "reverse_kl" if self.weight == 1 else None

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return -A_t log q(y_t), (N,)."""
        return TokenLosses(self.policy_gradient(tokens))


def clipped_policy_gradient(tokens: Tokens, advantage: Tensor, clip: float, dual_clip: float | None = None) -> Tensor:
    """Return -min(r A, clip(r, 1 - c, 1 + c) A) with r = q / q_old, and for A < 0 at most -d A, (N,).

    PPO (arXiv 1707.06347) and its dual clip (arXiv 1912.09729).
    """
    ratio = torch.exp(tokens.logq - tokens.logq_old)
    losses = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
    if dual_clip is None:
        return losses
    return torch.where(advantage < 0, torch.minimum(losses, -dual_clip * advantage), losses)
