"""Divergences of student and teacher: forward and reverse KL, the generalised Jensen-Shannon divergence, and top-K forward KL.

Those over the whole vocabulary map log-probabilities (n, V) of student and teacher to nats per token (n,). `beta` is that of
TRL and GKD: 0 is the forward KL(p || q), 1 the reverse KL(q || p).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from adapters.loop.tokens import Tokens, require

Tail = Literal["none", "bucket", "renormalise"]


def forward_kl(logq: Tensor, logp: Tensor) -> Tensor:
    """Return KL(p || q) = sum_v p_v (log p_v - log q_v)."""
    return _kl(logp, logq)


def reverse_kl(logq: Tensor, logp: Tensor) -> Tensor:
    """Return KL(q || p) = sum_v q_v (log q_v - log p_v)."""
    return _kl(logq, logp)


def generalised_jsd(logq: Tensor, logp: Tensor, beta: float) -> Tensor:
    """Return beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (arXiv 2306.13649, eq. 1).

    At beta 0 and 1 it is the forward and the reverse KL, as in TRL; the formula itself would be 0 there.
    """
    if beta == 0:
        return forward_kl(logq, logp)
    if beta == 1:
        return reverse_kl(logq, logp)
    mixture = _mixture(logq, logp, beta)
    return beta * _kl(logp, mixture) + (1 - beta) * _kl(logq, mixture)


def top_k_forward_kl(tokens: Tokens, tail: Tail = "none") -> Tensor:
    """Return sum over the teacher's top K of p_v (log p_v - log q_v), (N,).

    With tail `none`, as in the official AOPD code, both sides are normalised over the whole vocabulary and the sum is not
    clamped: it may be negative, and a clamp at 0 would remove its gradient. Its minimiser puts no mass outside the top K.
    `bucket` adds the term of the mass outside the top K, as of one token; `renormalise` normalises both sides over the top K.
    """
    logp, logq = tokens.top_logp, tokens.top_logq
    if tail == "renormalise":
        logp, logq = logp.log_softmax(-1), logq.log_softmax(-1)
    inside = (logp.exp() * (logp - logq)).sum(-1)
    return inside + _outside(logp, require(tokens.rest_logq, "rest")) if tail == "bucket" else inside


def _mixture(logq: Tensor, logp: Tensor, beta: float) -> Tensor:
    # Where both sides are 0, logaddexp has no gradient; the value there does not matter, because `_kl` multiplies it by 0.
    if not (_mass_everywhere(logq) or _mass_everywhere(logp)):
        neither = (logq == -torch.inf) & (logp == -torch.inf)
        logp, logq = (side.masked_fill(neither, 0.0) for side in (logp, logq))
    return torch.logaddexp(logp + math.log(beta), logq + math.log(1 - beta))


def _kl(first: Tensor, second: Tensor) -> Tensor:
    # Where `first` is 0, the term 0 (log 0 - x) is 0, and so is its gradient.
    apart = first - second
    if not _mass_everywhere(first):
        apart = apart.masked_fill(first == -torch.inf, 0.0)
    return (first.exp() * apart).sum(-1)


def _mass_everywhere(logprobs: Tensor) -> bool:
    """Return whether surely no token has probability 0; False on a GPU, where the check would make it wait."""
    return not logprobs.is_cuda and logprobs.numel() > 0 and bool(logprobs.detach().amin() > -torch.inf)


def _outside(logp: Tensor, rest_logq: Tensor) -> Tensor:
    """Return p log(p / q) of the mass outside the top K, (N,); 0 where either side has none.

    The student's mass is given as a logarithm, because 1 - sum q is 0 in float32, without gradient, where the student is sure.
    The teacher's is a weight without gradient; in float64 it is as exact as the log-probabilities.
    """
    outside = (1 - logp.double().exp().sum(-1)).clamp(min=0)
    terms = torch.xlogy(outside, outside) - outside * rest_logq.masked_fill(rest_logq == -torch.inf, 0.0)
    return torch.where(rest_logq == -torch.inf, 0.0, terms).to(logp.dtype)
