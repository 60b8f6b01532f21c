"""On-policy distillation: the policy gradient of each token's reverse KL on the student's own samples.

L = -E[1/|y| sum_t A_t log q(y_t|c_t)] with A_t = sg[log p(y_t|c_t) - log q(y_t|c_t)] (Thinking Machines 2025; arXiv
2605.06387), where sg stops the gradient. Its expected gradient is that of KL(q || p) at fixed states c_t: unlike in MiniLLM's
sequence objective, a token gets no credit for the states that it leads to. The PPO clips are options of the official AOPD
code; as in the paper, they are off.
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
    """Base of the methods with a policy-gradient term: the term and its options."""

    teacher_needs: ClassVar[Needs] = "sampled"

    weight: float = Field(
        default=1.0, gt=0, description="factor on the policy-gradient term; 1.25 in the official scripts"
    )
    clip: float | None = Field(
        default=None, gt=0, lt=1, description="PPO ratio clip, 0.2 in the official code; null is off"
    )
    dual_clip: float | None = Field(
        default=None,
        gt=1,
        description="bound on the loss of negative advantages, 3.0 in the official code; null is off",
    )

    @model_validator(mode="after")
    def _dual_clip_needs_clip(self) -> PolicyGradient:
        if self.dual_clip is not None and self.clip is None:
            raise ValueError("dual_clip bounds the clipped loss; set clip too (the official code uses 0.2 and 3.0)")
        return self

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train as the loop does; warns of several updates per rollout without a ratio clip."""
        if self.updates_per_rollout > 1 and self.clip is None:
            ctx.warn(
                f"updates_per_rollout is {self.updates_per_rollout} and clip is null: from the second update on, an older "
                "student drew the responses, and no importance ratio corrects for that; set clip, or updates_per_rollout: 1"
            )
        return super().train_stage(ctx)

    def policy_gradient(self, tokens: Tokens, advantage: Tensor | None = None) -> Tensor:
        """Return the policy-gradient loss of each token, (N,); `advantage` (N,) replaces A_t."""
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
        """The reverse KL; None with a weight, which scales its gradient."""
        return "reverse_kl" if self.weight == 1 else None

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return -A_t log q(y_t), (N,)."""
        return TokenLosses(self.policy_gradient(tokens))


def clipped_policy_gradient(tokens: Tokens, advantage: Tensor, clip: float, dual_clip: float | None = None) -> Tensor:
    """Return -min(r A, clip(r, 1 - c, 1 + c) A) with r = q / q_old, and for A < 0 at most -d A, (N,).

    `advantage` is A (N,), `clip` is c, `dual_clip` is d. Sources: PPO (arXiv 1707.06347), dual clip (arXiv 1912.09729).
    """
    ratio = torch.exp(tokens.logq - tokens.logq_old)
    losses = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
    if dual_clip is None:
        return losses
    return torch.where(advantage < 0, torch.minimum(losses, -dual_clip * advantage), losses)
