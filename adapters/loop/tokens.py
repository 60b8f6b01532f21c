"""The input and the output of a loss per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import TrainingError
from harness.lm.rollouts import Batch, Rollout
from harness.lm.seeding import derive_seed

MOST = 2.0  # weight of a token that was drawn ahead


@dataclass(frozen=True)
class Tokens:
    """The N response tokens of a batch; log-probabilities in nats over the whole vocabulary.

    `logq` (N,) and `top_logq` (N, K) are the student's, with gradient, at the sampled token and on the teacher's top K;
    `logq_old` (N,) is the policy that sampled; `logp` (N,) and `top_logp` (N, K) are the teacher's, K may be 0. The rest is
    there for adapters that ask for it: `entropy_p` (N,) of the teacher, `divergence` (N,) of the adapter with gradient,
    `logref` (N,) under the stage's start, `credit` (N,) of the response that a token belongs to, `rest_logq` (N,) the
    student's of all tokens outside the teacher's top K together, with gradient; `uniform` (N,) draws in [0, 1).
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
    uniform: Tensor | None = None

    @property
    def advantage(self) -> Tensor:
        """A_t = sg[log p(y_t) - log q(y_t)], (N,), of the policy that sampled."""
        return (self.logp - self.logq_old).detach()


@dataclass(frozen=True)
class TokenLosses:
    """Losses (N,) with gradient, and which tokens (N,) a method routes to forward KL, where it routes."""

    losses: Tensor
    routed: Tensor | None = None


def check_losses(found: object, count: int, method: str) -> TokenLosses:
    """Return what a method's `token_losses` returned; raises `TrainingError` unless it has one loss for each of N tokens.

    A single loss would be broadcast to all tokens, and the average of a batch would be taken twice.
    """
    if not isinstance(found, TokenLosses):
        raise TrainingError(
            f"{method}.token_losses returned {type(found).__name__}, expected TokenLosses; return TokenLosses(losses)"
        )
    if found.losses.shape != (count,):
        raise TrainingError(
            f"{method}.token_losses returned losses of shape {tuple(found.losses.shape)}, expected ({count},), one for each "
            "response token; do not average them, `reduction` does"
        )
    return found


def require(signal: Tensor | None, name: str) -> Tensor:
    """Return a signal of `Tokens`; raises `TrainingError` for one that the adapter did not request."""
    if signal is None:
        raise TrainingError(
            f"the loop computed no {name}, because the adapter did not request it; see its `teacher_request`"
        )
    return signal


def importance(logq: Tensor, batch: Batch) -> Tensor | None:
    """Return q / q_drew (N,) of a batch that was drawn ahead: the student at the step's start over what drew the tokens.

    Its expectation under the older student is 1, and a loss weighed with it has the expectation of fresh tokens at the same
    states (the decoupled objective of arXiv 2110.00641). None for a batch of fresh tokens.
    """
    if not any(rollout.staleness for rollout in batch.rollouts):
        return None
    drew = [logprob for rollout in batch.rollouts for logprob in rollout.logprobs or ()]
    if len(drew) != len(logq):
        raise TrainingError(
            "rollouts that are drawn ahead need the log-probabilities with which they were drawn, and the engine reports "
            "none; set training.staleness: 0, or use another backend"
        )
    return (logq.detach() - torch.tensor(drew, dtype=logq.dtype, device=logq.device)).exp()


def uniform_draws(seed: int, step: int, rollouts: Sequence[Rollout]) -> Tensor:
    """Return draws (N,) in [0, 1), float64, for the tokens of some rollouts of a step.

    A draw depends only on the stage's seed, the step, the item and the response, not on batches or on other draws.
    """
    parts = [
        _draws(derive_seed(seed, "uniform", step, r.example.item_id, *r.response), len(r.response)) for r in rollouts
    ]
    return torch.cat(parts)


def _draws(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
