"""Forward KL on the teacher's top K: what of the rest of the vocabulary it keeps is an option."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from adapters.loop.tokens import Tokens, given

Tail = Literal["none", "bucket", "renormalise"]


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
    return inside + _outside(logp, given(tokens.rest_logq, "rest")) if tail == "bucket" else inside


def _outside(logp: Tensor, rest_logq: Tensor) -> Tensor:
    """Return p log(p / q) of the mass outside, 0 where nothing is outside.

    The student's comes as a logarithm of its own: 1 - sum q is 0 in float32, without gradient, where the student is sure. The
    teacher's is a weight, which float64 gives as exactly as its log-probabilities are.
    """
    outside = (1 - logp.double().exp().sum(-1)).clamp(min=0)
    terms = torch.xlogy(outside, outside) - outside * rest_logq.masked_fill(rest_logq == -torch.inf, 0.0)
    return torch.where(rest_logq == -torch.inf, 0.0, terms).to(logp.dtype)
