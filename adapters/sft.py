"""Supervised fine-tuning on the task's references: -log q(label)."""

from __future__ import annotations

from pydantic import Field

from adapters.loop.loop import LoopAdapter
from adapters.loop.tokens import TokenLosses, Tokens
from harness.adapter import Source
from harness.config.training import Training
from harness.lm.rollouts import Reduction


class SFT(LoopAdapter):
    """Cross-entropy on the reference tokens, stop token included; the mean over all tokens, as TRL has it."""

    reduction: Reduction = Field(default="token_mean", description="1/|y| per sequence, or the mean over all tokens")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data alone."""
        return ("data",)

    def temperature(self, training: Training) -> float:
        """Return 1: plain likelihood is taught, whatever temperature the student is sampled at."""
        return 1.0

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return -log q(label), (N,)."""
        return TokenLosses(-tokens.logq)
