"""What a loss per token sees, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The N response tokens of a batch; log-probabilities in nats over the whole vocabulary.

    `logq` (N,) and `top_logq` (N, K) are the student's, with gradient, at the sampled token and on the teacher's top K;
    `logq_old` (N,) is the policy that sampled; `logp` (N,) and `top_logp` (N, K) are the teacher's, K may be 0. The rest is
    there for adapters that ask for it: `entropy_p` (N,) of the teacher, `divergence` (N,) of the adapter with gradient,
    `logref` (N,) under the stage's start, `credit` (N,) of the response that a token belongs to, `rest_logq` (N,) the
    student's of all tokens outside the teacher's top K together, with gradient.
    """

    logq: Tensor
    logq_old: Tensor
    logp: Tensor
    top_logq: Tensor
    top_logp: Tensor
    entropy_p: Tensor | None = None
    divergence: Tensor | None = None
    logref: Tensor | None = None
    credit: Tensor | None = None
    rest_logq: Tensor | None = None

    @property
    def advantage(self) -> Tensor:
        """A_t = sg[log p(y_t) - log q(y_t)], (N,), of the policy that sampled."""
        return (self.logp - self.logq_old).detach()


@dataclass(frozen=True)
class TokenLosses:
    """Losses (N,) with gradient, and which tokens (N,) a method routes to forward KL, where it routes."""

    losses: Tensor
    routed: Tensor | None = None


def require(signal: Tensor | None, name: str) -> Tensor:
    """Return a signal of `Tokens`; raises `AssertionError` for one that the adapter did not request."""
    assert signal is not None, f"the loop computed no {name}; the adapter has to request it"
    return signal
