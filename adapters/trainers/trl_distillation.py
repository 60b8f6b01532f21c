"""TRL's `DistillationTrainer` as an adapter: on-policy distillation by another library.

It minimises the generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649) over the whole vocabulary on the student's own
responses, averaged over all tokens of a step: `gkd` with `lmbda: 1` and `reduction: token_mean`. Prompts, budget, optimiser,
schedule and stop tokens are the stage's; generation, loss and training loop are TRL's. An interrupted stage starts again.
"""

from __future__ import annotations

import importlib.util
from typing import ClassVar

from pydantic import Field

from harness.adapter import Adapter, Needs, StageContext, StageResult
from harness.config.training import Training
from harness.errors import ConfigError


class TRLDistillation(Adapter):
    """Train with TRL; the options have its names and defaults.

    There is no `lmbda`, because all responses are the student's own. All prompts of a step are decoded together.
    """

    formula: ClassVar[str] = "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, y ~ q"
    paper: ClassVar[str] = "TRL's DistillationTrainer; Agarwal et al. 2024 (arXiv 2306.13649)"
    deviation: ClassVar[str] = (
        "Generation, loss and training loop are TRL's; prompts, budget, optimiser and stop tokens are the stage's."
    )
    teacher_needs: ClassVar[Needs] = "full"

    beta: float = Field(default=1.0, ge=0, le=1, description="0 is forward KL, 1 reverse KL, between them JSD")
    disable_dropout: bool = Field(default=False, description="train the student without its own dropout")
    gradient_checkpointing: bool = Field(default=True, description="uses less memory and about a fifth more time")

    def refuse(self, training: Training) -> None:
        """Raise `ConfigError` when TRL is not installed, or micro-batches do not divide the rollouts."""
        if importlib.util.find_spec("trl") is None:
            raise ConfigError("trains with TRL, which is not installed; install it with `pip install -e '.[trl]'`")
        if training.precision == "bfloat16_master":
            raise ConfigError(
                "TRL keeps no master weights; set training.precision to float32 or autocast for this entry"
            )
        if training.tokens_per_batch is not None:
            raise ConfigError(
                "TRL takes micro-batches of one size; use training.micro_batch instead of tokens_per_batch"
            )
        if training.activation_checkpointing:
            raise ConfigError(
                "TRL has its own switch; use options.gradient_checkpointing in place of training.activation_checkpointing"
            )
        if (rollouts := training.prompts_per_step * training.num_generations) % (training.micro_batch or rollouts):
            raise ConfigError(
                f"TRL takes micro-batches of one size, but micro_batch {training.micro_batch} does not divide the "
                f"{rollouts} rollouts of a step; change micro_batch, prompts_per_step or num_generations"
            )

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train `ctx.student` in place; raises `TrainingError` for a gradient that is not finite, before it is applied."""
        from adapters.trainers.trl_trainer import train_with_trl  # imports transformers and TRL

        self.refuse(ctx.training)
        train_with_trl(ctx, self.model_dump())
        return StageResult(ctx.training.steps)
