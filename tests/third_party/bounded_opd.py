"""OPD with a bound on each token's advantage, so that one token the teacher finds absurd cannot dominate a step."""

from typing import ClassVar

from pydantic import Field

from adapters import LoopAdapter, Needs, TokenLosses, Tokens


class BoundedOPD(LoopAdapter):
    """-clamp(A_t, -bound, bound) log q(y_t), y from the student."""

    teacher_needs: ClassVar[Needs] = "sampled"

    bound: float = Field(default=2.0, gt=0, description="largest advantage that counts, in nats")

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the bounded policy-gradient loss at each token, (N,)."""
        return TokenLosses(-tokens.advantage.clamp(-self.bound, self.bound) * tokens.logq)
