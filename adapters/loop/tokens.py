"""The input and the output of a loss per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import TrainingError
from harness.lm.rollouts import Batch, Rollout
from harness.lm.seeding import derive_seed

MOST = 2.0  # the highest importance weight of a token that was drawn ahead


@dataclass(frozen=True)
class Tokens:
    """The N response tokens of a batch; log-probabilities are in nats and normalised over the whole vocabulary.

    - `logq` (N,), `top_logq` (N, K): the student's, with gradient, at the sampled token and on the teacher's top K.
    - `logq_old` (N,): the student's at the start of the step, before its updates.
    - `logp` (N,), `top_logp` (N, K): the teacher's; K may be 0.

    The others are None unless the adapter requests them:

    - `entropy_p` (N,): the teacher's entropy.
    - `divergence` (N,): the adapter's `divergence`, with gradient.
    - `logref` (N,): the log-probability under the stage's start.
    - `credit` (N,): the credit of the token's response.
    - `rest_logq` (N,): the student's log-probability of all tokens outside the teacher's top K together, with gradient.
    - `uniform` (N,): draws in [0, 1).
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
        """A_t = log p(y_t) - log q(y_t), (N,), without gradient, with q = `logq_old`."""
        return (self.logp - self.logq_old).detach()


@dataclass(frozen=True)
class TokenLosses:
    """Losses (N,) with gradient, and which tokens (N,) are routed to forward KL; None for a method that routes none."""

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
    """Return a field of `Tokens` that is not None; raises `TrainingError` for one that the adapter did not request."""
    if signal is None:
        raise TrainingError(
            f"the loop computed no {name}, because the adapter did not request it; see its `teacher_request`"
        )
    return signal


def importance(logq: Tensor, batch: Batch) -> Tensor | None:
    """Return the ratio q / q_drew (N,) of a batch that was drawn ahead; None for a batch of fresh tokens.

    q is the student at the step's start, `logq` (N,) its log-probabilities, and q_drew the older student that drew the tokens.
    The ratio's expectation under q_drew is 1, and a loss that is multiplied by it has the expectation of fresh tokens at the
    same states (the decoupled objective of arXiv 2110.00641). Raises `TrainingError` where the engine reported no
    log-probabilities.
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
    """Return draws (N,) in [0, 1), float64, for the tokens of a step's rollouts.

    A draw depends only on the stage's seed, the step, the item and the response, so not on how rollouts are batched.
    """
    parts: list[Tensor] = []
    for rollout in rollouts:
        own = derive_seed(seed, "uniform", step, rollout.example.item_id, *rollout.response)
        generator = torch.Generator().manual_seed(own)
        parts.append(torch.rand(len(rollout.response), generator=generator, dtype=torch.float64))
    return torch.cat(parts)
