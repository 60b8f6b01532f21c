"""Supervised fine-tuning on the task's references, and sequence-level distillation: the same on the teacher's samples."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import REDUCTION, LoopAdapter, Objective
from harness.adapter import Needs, Source
from harness.config.training import Training
from harness.lm.rollouts import Reduction


class SFT(LoopAdapter):
    """Cross-entropy on the reference tokens, stop token included; averaged over all tokens, as in TRL."""

    formula: ClassVar[str] = "-log q(y_t), y the reference"

    reduction: Reduction = Field(default="token_mean", description=REDUCTION)
    disable_dropout: bool = Field(default=False, description="train without the model's dropout")

    @property
    def sources(self) -> tuple[Source, ...]:
        """Only the data."""
        return ("data",)

    def temperature(self, training: Training) -> float:
        """Return 1: the likelihood does not depend on the student's sampling temperature."""
        return 1.0

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return -log q(y_t), (N,)."""
        return TokenLosses(-tokens.logq)


class SeqKD(SFT):
    """Sequence-level distillation (arXiv 1606.07947): -log q(y), y sampled from the teacher."""

    formula: ClassVar[str] = "-log q(y_t), y ~ p"
    paper: ClassVar[str] = "Kim and Rush 2016 (arXiv 1606.07947)"
    deviation: ClassVar[str] = (
        "The paper decodes the teacher by beam search; this samples from it, which gives the forward KL in expectation."
    )
    teacher_needs: ClassVar[Needs] = "generate"

    @property
    def objective(self) -> Objective | None:
        """The forward KL, in expectation over the teacher's samples."""
        return "forward_kl"

    @property
    def sources(self) -> tuple[Source, ...]:
        """Only the teacher."""
        return ("teacher",)
