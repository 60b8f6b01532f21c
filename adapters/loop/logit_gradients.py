"""The gradient of a token's loss with respect to the student's logits, in closed form from that at a few chosen tokens.

Let g_c = dL/d log q_c at the chosen tokens and s = sum_c g_c. Then dL/dz_v = g_v 1[v chosen] - s q_v. A gradient g at the
log-probability of the rest R, all tokens outside the teacher's top K, is part of s and adds g q_v / q_R for v in R.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_at_chosen(losses: Tensor, chosen: Tensor, ids: Tensor) -> Tensor:
    """Return g (N, C) of losses (N,) at log-probabilities `chosen` (N, C) of the tokens `ids` (N, C).

    Column 0 is the sampled token. Where it is also in another column, its gradient is added there and 0 here, so that no two
    columns with a gradient are the same token. Losses that do not use `chosen` give zeros.
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
    """Return the gradient (N,) of losses (N,) at one log-probability each, (N,); None for None or losses without gradient."""
    if logprobs is None or not losses.requires_grad:
        return None
    return torch.autograd.grad(losses.sum(), logprobs, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def norms(
    gradient: Tensor, logq: Tensor, ids: Tensor, at_rest: Tensor | None = None, rest: Tensor | None = None
) -> Tensor:
    """Return sum_v |dL/dz_v|, (N,), each token counted once.

    `gradient`, `logq` and `ids` are (N, C), as in `gradient_at_chosen`; `at_rest` (N,) is the gradient at the log-probability
    `rest` (N,) of all tokens outside the teacher's top K.
    """
    total = _total(gradient, at_rest)[:, None]
    once = torch.ones_like(ids, dtype=torch.bool)
    once[:, 0] = ~(ids[:, 1:] == ids[:, :1]).any(-1)
    q = logq.exp() * once
    remaining = (1 - q.sum(-1)).clamp(min=0)
    if at_rest is None or rest is None:
        return ((gradient - total * q).abs() * once).sum(-1) + total[:, 0].abs() * remaining
    # A sampled token outside the top K is in the rest, and has its part of the rest's gradient.
    part = torch.where(once[:, 0] & rest.isfinite(), (logq[:, 0] - rest).exp().clamp(max=1), 0.0)
    own = torch.cat([(at_rest * part)[:, None], torch.zeros_like(gradient[:, 1:])], dim=1)
    return ((gradient + own - total * q).abs() * once).sum(-1) + (at_rest * (1 - part) - total[:, 0] * remaining).abs()


def pull_on(column: int, gradient: Tensor, logq: Tensor, at_rest: Tensor | None = None) -> Tensor:
    """Return -dL/dz, (N,), of a column's token, which must not be in the rest: how far descent raises its logit."""
    return -(gradient[:, column] - _total(gradient, at_rest) * logq[:, column].exp())


def _total(gradient: Tensor, at_rest: Tensor | None) -> Tensor:
    return gradient.sum(-1) + (0.0 if at_rest is None else at_rest)
