"""ExOPD (arXiv 2602.12125): OPD whose reward is extrapolated, to lambda times the teacher's gain over a reference.

A_t = lambda (log p - log ref) - (log q - log ref), ref the student at the stage's start; lambda 1 is OPD.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from adapters.loop.tokens import TokenLosses, Tokens, require
from adapters.opd import PolicyGradient


class ExOPD(PolicyGradient):
    """Policy gradient with the extrapolated advantage."""

    formula: ClassVar[str] = (
        "-A_t log q(y_t), A_t = extrapolation (log p - log ref) - (log q - log ref), ref the stage's start, y ~ q"
    )
    paper: ClassVar[str] = "arXiv 2602.12125"
    deviation: ClassVar[str] = "The reference is the student at the start of the stage."

    extrapolation: float = Field(default=1.25, gt=0, description="the paper's lambda")

    @property
    def scores_start(self) -> bool:
        """True: the reference is the stage's start."""
        return True

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the policy-gradient loss with the extrapolated advantage, (N,)."""
        reference = require(tokens.logref, "reference")
        gain, drift = tokens.logp - reference, tokens.logq_old - reference
        return TokenLosses(self.policy_gradient(tokens, self.extrapolation * gain - drift))
