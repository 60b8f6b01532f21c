"""How a token's loss pulls at the student's logits, in closed form from the gradient at the few chosen tokens.

With g_c = dL/d log q_c at the chosen tokens and s = sum_c g_c, dL/dz_v = g_v 1[v chosen] - s q_v. A gradient g at the
log-probability of the rest R, all tokens that are not the teacher's top K, is part of s and adds g q_v / q_R in R.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_at_chosen(losses: Tensor, chosen: Tensor, ids: Tensor) -> Tensor:
    """Return g (N, C) of losses (N,) at log-probabilities `chosen` (N, C) of `ids` (N, C).

    Column 0 is the sampled token; where it is also among the others, its gradient is counted there, so that every column
    with a gradient stands for a separate token. Losses that do not use `chosen` give zeros.
    """
    if not losses.requires_grad:
        return torch.zeros_like(chosen)
    (gradient,) = torch.autograd.grad(losses.sum(), chosen, retain_graph=True, allow_unused=True)
    if gradient is None:  # pyright: ignore[reportUnnecessaryComparison]
        return torch.zeros_like(chosen)
    again = ids[:, 1:] == ids[:, :1]
    others = gradient[:, 1:] + again * gradient[:, :1]
    own = torch.where(again.any(-1), 0.0, gradient[:, 0])
    return torch.cat([own[:, None], others], dim=1)


def gradient_at(losses: Tensor, logprobs: Tensor | None) -> Tensor | None:
    """Return the gradient (N,) of losses (N,) at log-probabilities (N,) of their own tokens; None where there are none."""
    if logprobs is None or not losses.requires_grad:
        return None
    return torch.autograd.grad(losses.sum(), logprobs, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def norms(
    gradient: Tensor, logq: Tensor, ids: Tensor, at_rest: Tensor | None = None, rest: Tensor | None = None
) -> Tensor:
    """Return sum_v |dL/dz_v| (N,) of gradients and log-probabilities (N, C), each token counted once."""
    total = _total(gradient, at_rest)[:, None]
    once = torch.ones_like(ids, dtype=torch.bool)
    once[:, 0] = ~(ids[:, 1:] == ids[:, :1]).any(-1)
    q = logq.exp() * once
    remaining = (1 - q.sum(-1)).clamp(min=0)
    if at_rest is None or rest is None:
        return ((gradient - total * q).abs() * once).sum(-1) + total[:, 0].abs() * remaining
    # The sampled token, where it is in the rest, has a part of its gradient.
    part = torch.where(once[:, 0] & rest.isfinite(), (logq[:, 0] - rest).exp().clamp(max=1), 0.0)
    own = torch.cat([(at_rest * part)[:, None], torch.zeros_like(gradient[:, 1:])], dim=1)
    return ((gradient + own - total * q).abs() * once).sum(-1) + (at_rest * (1 - part) - total[:, 0] * remaining).abs()


def pull_on(column: int, gradient: Tensor, logq: Tensor, at_rest: Tensor | None = None) -> Tensor:
    """Return -dL/dz (N,) of one chosen token outside the rest: how hard a step of gradient descent raises its logit."""
    return -(gradient[:, column] - _total(gradient, at_rest) * logq[:, column].exp())


def _total(gradient: Tensor, at_rest: Tensor | None) -> Tensor:
    return gradient.sum(-1) + (0.0 if at_rest is None else at_rest)
