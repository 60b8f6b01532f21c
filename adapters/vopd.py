"""vOPD (arXiv 2605.07865): OPD with a baseline in closed form, which reduces the variance of the gradient.

The expectation of A_t under the student is -KL(q || p)(c_t), so A_t + KL(q || p)(c_t) has mean zero.
"""

from __future__ import annotations

from typing import ClassVar

from adapters.loop.tokens import TokenLosses, Tokens, require
from adapters.loop.training_loop import Objective
from adapters.opd import PolicyGradient
from harness.adapter import Needs
from harness.lm.logprobs import TeacherRequest


class VOPD(PolicyGradient):
    """Policy gradient with A_t + KL(q || p)(c_t)."""

    formula: ClassVar[str] = "-(A_t + KL(q || p)_t) log q(y_t), y ~ q"
    paper: ClassVar[str] = "arXiv 2605.07865"
    deviation: ClassVar[str] = (
        "The baseline has mean zero only while q sampled the response: with one update per rollout."
    )
    teacher_needs: ClassVar[Needs] = "full"

    @property
    def objective(self) -> Objective | None:
        """The reverse KL, as in OPD; None with a weight, which scales its gradient."""
        return "reverse_kl" if self.weight == 1 else None

    @property
    def teacher_request(self) -> TeacherRequest:
        """The teacher's whole distribution, for the baseline."""
        return TeacherRequest(vocabulary=True)

    @property
    def beta_of_divergence(self) -> float | None:
        """1, the reverse KL."""
        return 1.0

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the policy-gradient loss with the baseline, (N,)."""
        baseline = require(tokens.divergence, "divergence").detach()
        return TokenLosses(self.policy_gradient(tokens, tokens.advantage + baseline))
