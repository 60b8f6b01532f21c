"""Divergences over the whole vocabulary: forward and reverse KL, and the generalised Jensen-Shannon between them.

All map log-probabilities (n, V) of student and teacher to nats per token (n,). `beta` runs in TRL's and GKD's direction:
0 is the forward KL(p || q), 1 the reverse KL(q || p).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from adapters.loop.tokens import Tokens, require
from harness.lm.output_layer import Divergence

Tail = Literal["none", "bucket", "renormalise"]


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


@torch.no_grad()
def known_beta(divergence: Divergence, beta: float | None) -> float | None:
    """Return `beta` where a divergence is `generalised_jsd` with it, by its values on a small input; None where it is not.

    A class may say the beta of its parent and override the parent's divergence.
    """
    if beta is None:
        return None
    draw = torch.Generator().manual_seed(0)
    logq, logp = torch.randn(2, 3, 7, generator=draw, dtype=torch.float64).log_softmax(-1)
    same = torch.allclose(divergence(logq, logp), generalised_jsd(logq, logp, beta), rtol=0, atol=1e-10)
    return beta if same else None


def top_k_forward_kl(tokens: Tokens, tail: Tail = "none") -> Tensor:
    """Return sum over the teacher's top K of p_v (log p_v - log q_v), (N,).

    `none` is the official AOPD code's form: both sides normalised over the whole vocabulary, not clamped (the sum may be
    negative, and a clamp at 0 would kill its gradient); its minimiser puts no mass outside K. `bucket` adds the same term
    for the mass outside K as one token, `renormalise` normalises both sides over K.
    """
    logp, logq = tokens.top_logp, tokens.top_logq
    if tail == "renormalise":
        logp, logq = logp.log_softmax(-1), logq.log_softmax(-1)
    inside = (logp.exp() * (logp - logq)).sum(-1)
    return inside + _outside(logp, require(tokens.rest_logq, "rest")) if tail == "bucket" else inside


def _mixture(logq: Tensor, logp: Tensor, beta: float) -> Tensor:
    # Where neither puts any mass, logaddexp has no gradient; what stands there is multiplied by 0 below.
    if not (_mass_everywhere(logq) or _mass_everywhere(logp)):
        neither = (logq == -torch.inf) & (logp == -torch.inf)
        logp, logq = (side.masked_fill(neither, 0.0) for side in (logp, logq))
    return torch.logaddexp(logp + math.log(beta), logq + math.log(1 - beta))


def _kl(first: Tensor, second: Tensor) -> Tensor:
    # Where the first puts no mass, 0 (log 0 - x) is 0, and so is its gradient.
    apart = first - second
    if not _mass_everywhere(first):
        apart = apart.masked_fill(first == -torch.inf, 0.0)
    return (first.exp() * apart).sum(-1)


def _mass_everywhere(logprobs: Tensor) -> bool:
    """Return whether it is known that no token has probability 0: looking is cheap on a CPU, but would make a GPU wait."""
    return not logprobs.is_cuda and logprobs.numel() > 0 and bool(logprobs.detach().amin() > -torch.inf)


def _outside(logp: Tensor, rest_logq: Tensor) -> Tensor:
    """Return p log(p / q) of the mass outside, 0 where nothing is outside.

    The student's comes as a separate logarithm: 1 - sum q is 0 in float32, without gradient, where the student is sure. The
    teacher's is a weight, which float64 gives as exactly as its log-probabilities are.
    """
    outside = (1 - logp.double().exp().sum(-1)).clamp(min=0)
    terms = torch.xlogy(outside, outside) - outside * rest_logq.masked_fill(rest_logq == -torch.inf, 0.0)
    return torch.where(rest_logq == -torch.inf, 0.0, terms).to(logp.dtype)
