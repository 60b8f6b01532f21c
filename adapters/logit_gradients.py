"""How a token's loss pulls at the student's logits, in closed form from the gradient at the few chosen tokens.

With g_c = dL/d log q_c at the chosen tokens and s = sum_c g_c, dL/dz_v = g_v 1[v chosen] - s q_v.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_at_chosen(losses: Tensor, chosen: Tensor, ids: Tensor) -> Tensor:
    """Return g (N, C) of losses (N,) at log-probabilities `chosen` (N, C) of `ids` (N, C).

    Column 0 is the sampled token; where it is also among the others, its gradient is counted there, so that every column
    with a gradient stands for a token of its own. Losses that do not use `chosen` give zeros.
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


def norms(gradient: Tensor, logq: Tensor, ids: Tensor) -> Tensor:
    """Return sum_v |dL/dz_v| (N,) of gradients and log-probabilities (N, C), each token counted once."""
    total = gradient.sum(-1, keepdim=True)
    once = torch.ones_like(ids, dtype=torch.bool)
    once[:, 0] = ~(ids[:, 1:] == ids[:, :1]).any(-1)
    q = logq.exp() * once
    return ((gradient - total * q).abs() * once).sum(-1) + total[:, 0].abs() * (1 - q.sum(-1)).clamp(min=0)


def pull_on(column: int, gradient: Tensor, logq: Tensor) -> Tensor:
    """Return -dL/dz (N,) of one chosen token: how hard a step of gradient descent raises its logit."""
    return -(gradient[:, column] - gradient.sum(-1) * logq[:, column].exp())
