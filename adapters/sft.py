"""Supervised fine-tuning on the task's references: -log q(label)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from adapters.loop.loop import LoopAdapter
from adapters.loop.tokens import TokenLosses, Tokens
from harness.lm.rollouts import Reduction


class SFT(LoopAdapter):
    """Cross-entropy on the reference tokens, stop token included; the mean over all tokens, as TRL has it."""

    on_policy: ClassVar[bool] = False
    reduction: Reduction = Field(default="token_mean", description="1/|y| per sequence, or the mean over all tokens")

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return -log q(label), (N,)."""
        return TokenLosses(-tokens.logq)
