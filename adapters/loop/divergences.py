"""Divergences over the whole vocabulary: forward and reverse KL, and the generalised Jensen-Shannon between them.

All map log-probabilities (n, V) of student and teacher to nats per token (n,). `beta` runs in TRL's and GKD's direction:
0 is the forward KL(p || q), 1 the reverse KL(q || p).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward_kl(logq: Tensor, logp: Tensor) -> Tensor:
    """Return KL(p || q) = sum_v p_v (log p_v - log q_v)."""
    return _kl(logp, logq)


def reverse_kl(logq: Tensor, logp: Tensor) -> Tensor:
    """Return KL(q || p) = sum_v q_v (log q_v - log p_v)."""
    return _kl(logq, logp)


def generalised_jsd(logq: Tensor, logp: Tensor, beta: float) -> Tensor:
    """Return beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (arXiv 2306.13649, eq. 1).

    The limits 0 and 1 are the two KL divergences themselves, as in TRL, not the formula's own limit, which is 0.
    """
    if beta == 0:
        return forward_kl(logq, logp)
    if beta == 1:
        return reverse_kl(logq, logp)
    mixture = _mixture(logq, logp, beta)
    return beta * _kl(logp, mixture) + (1 - beta) * _kl(logq, mixture)


def _mixture(logq: Tensor, logp: Tensor, beta: float) -> Tensor:
    # Where neither puts any mass, logaddexp has no gradient; what stands there is multiplied by 0 below.
    neither = (logq == -torch.inf) & (logp == -torch.inf)
    logp, logq = (side.masked_fill(neither, 0.0) for side in (logp, logq))
    return torch.logaddexp(logp + math.log(beta), logq + math.log(1 - beta))


def _kl(first: Tensor, second: Tensor) -> Tensor:
    # Where the first puts no mass, 0 (log 0 - x) is 0, and so is its gradient.
    return (first.exp() * (first - second).masked_fill(first == -torch.inf, 0.0)).sum(-1)
