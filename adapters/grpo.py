"""Group relative policy optimisation (GRPO, arXiv 2402.03300): verifiable rewards, normalised within a prompt's group.

A response's reward is the task's grade. A = (reward - mean(group)) / (std(group) + eps) is the advantage of all its tokens in
the clipped policy gradient. A KL penalty keeps the student near the stage's start, the reference. There is no teacher.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from adapters.loop.tokens import TokenLosses, Tokens, require
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import clipped_policy_gradient
from harness.adapter import StageContext
from harness.config.training import Training
from harness.errors import ConfigError
from harness.lm.rollouts import Rollout

EPSILON = 1e-4


class GRPO(LoopAdapter):
    """Clipped policy gradient on grades that are normalised within a group; needs `training.num_generations` of 2 or more."""

    formula: ClassVar[str] = (
        "-min(r_t A, clip(r_t, 1 - clip, 1 + clip) A) + kl (ref / q - log(ref / q) - 1), r_t = q / q_old, "
        "A = (reward - mean) / std over the group, y ~ q"
    )
    paper: ClassVar[str] = "Shao et al. 2024 (arXiv 2402.03300)"
    deviation: ClassVar[str] = (
        "The reference is the start of the stage; updates_per_rollout and the budget are the suite's."
    )

    clip: float = Field(default=0.2, gt=0, lt=1, description="PPO ratio clip")
    kl: float = Field(
        default=0.04, ge=0, description="factor on the KL to the stage's start, the paper's beta; 0 is off"
    )
    scale: bool = Field(default=True, description="divide by the group's standard deviation (n - 1); Dr. GRPO does not")

    @property
    def scores_start(self) -> bool:
        """Whether the KL penalty is on."""
        return self.kl > 0

    def refuse(self, training: Training) -> None:
        """Raise `ConfigError` for fewer than two responses to a prompt, which cannot be compared."""
        super().refuse(training)
        if training.num_generations < 2:
            raise ConfigError(
                f"responses to one prompt are compared, but training.num_generations is {training.num_generations}; "
                "set it to 2 or more"
            )

    def credit(self, ctx: StageContext, rollouts: list[Rollout]) -> list[Rollout]:
        """Return the rollouts with their normalised grades as `credit`, and the grades as `reward`."""
        size = ctx.training.num_generations
        groups = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        return [rollout for group in groups for rollout in self._normalised(group, [ctx.reward(r) for r in group])]

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return -min(r A, clip(r) A) with the response's A at each of its tokens, and the KL penalty, (N,).

        The penalty estimates KL(q || ref) without bias and is never negative ("k3" in J. Schulman, Approximating KL
        divergence, 2020).
        """
        losses = clipped_policy_gradient(tokens, require(tokens.credit, "credit"), self.clip)
        if self.kl:
            above = require(tokens.logref, "reference") - tokens.logq
            losses = losses + self.kl * (above.expm1() - above)
        return TokenLosses(losses)

    def _normalised(self, group: list[Rollout], rewards: list[float]) -> list[Rollout]:
        mean, spread = statistics.fmean(rewards), statistics.stdev(rewards) if self.scale else 1.0 - EPSILON
        return [
            replace(r, credit=(x - mean) / (spread + EPSILON), reward=x) for r, x in zip(group, rewards, strict=True)
        ]
