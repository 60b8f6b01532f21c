"""Forward KL on the teacher's top K: what of the rest of the vocabulary it keeps is an option."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from adapters.tokens import Tokens

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
    if tail != "bucket":
        return inside
    outside_p, outside_q = _outside(logp), _outside(logq)
    return inside + outside_p * (outside_p.log() - outside_q.log())


def _outside(logprobs: Tensor) -> Tensor:
    """Return the mass outside, kept above rounding so that its logarithm and gradient are finite."""
    return (1 - logprobs.exp().sum(-1)).clamp(min=torch.finfo(logprobs.dtype).eps)
