"""Supervised fine-tuning: on the task's references, or, as sequence-level distillation, on the teacher's samples."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import REDUCTION, LoopAdapter, Objective
from harness.adapter import Needs, Source
from harness.config.training import Training
from harness.lm.rollouts import Reduction


class SFT(LoopAdapter):
    """Cross-entropy on the reference tokens, stop token included; the mean over all tokens, as TRL has it."""

    formula: ClassVar[str] = "-log q(y_t), y the reference"

    reduction: Reduction = Field(default="token_mean", description=REDUCTION)
    disable_dropout: bool = Field(default=False, description="train without the model's dropout")

    @property
    def sources(self) -> tuple[Source, ...]:
        """Only the data."""
        return ("data",)

    def temperature(self, training: Training) -> float:
        """Return 1: SFT trains on the plain likelihood, at any sampling temperature of the student."""
        return 1.0

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return -log q(label), (N,)."""
        return TokenLosses(-tokens.logq)


class SeqKD(SFT):
    """Sequence-level distillation (arXiv 1606.07947): -log q(y), y sampled from the teacher."""

    formula: ClassVar[str] = "-log q(y_t), y ~ p"
    paper: ClassVar[str] = "Kim and Rush 2016 (arXiv 1606.07947)"
    deviation: ClassVar[str] = (
        "The paper decodes the teacher's mode by beam search; this samples, whose expectation is the forward KL."
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
