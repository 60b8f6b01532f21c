"""The generalised Jensen-Shannon divergence of a student and a model in this process, in closed form.

The formulas are those of `divergence_kernels`, which computes them on a GPU. On other devices torch computes them here, in
blocks that fit into a core's cache. The forward pass keeps the sums over whole rows, so the backward pass goes tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from harness.lm.tiles import Head, gradients, spans, tile_size, whole_rows

# Logits of one side in a block: 256 KiB in float32, and about five times as much with all that is made of them.
BLOCK_ELEMENTS = 2**16


class ModelDivergence(torch.autograd.Function):
    """The divergence (N,) with gradient; `teacher` is `ModelRows`, and `fused` says whether the kernels compute it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        teacher: Any,
        beta: float,
        fused: bool,
    ) -> Tensor:
        """Compute the losses of chunks of rows; weight and bias are the head's, passed separately for autograd.

        Where one chunk holds all rows, both sides' products are kept, and the backward pass need not compute them again.
        """
        of_chunk, _ = _elementwise(fused)
        found: list[tuple[Tensor, ...]] = []
        chunk: tuple[Tensor, ...] = ()
        for rows in spans(max(1, len(hidden)), whole_rows(len(weight)) // 2 or 1):
            del chunk  # its memory is free before the next one's is taken
            chunk = head.products(hidden[rows]).contiguous(), teacher.products(rows).contiguous()
            found.append(of_chunk(*chunk, head, teacher.head, beta))
        losses, *sums = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, bias, *sums, *(chunk if len(found) == 1 else ()))
        ctx.head, ctx.teacher, ctx.beta, ctx.fused = head, teacher, beta, fused
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Go over the tiles of both sides' products."""
        hidden, weight, bias, inner, student_sum, teacher_sum, *kept = ctx.saved_tensors
        head, teacher, (_, of_tile) = ctx.head, ctx.teacher, _elementwise(ctx.fused)

        def gradient(rows: slice, columns: slice, part: Head) -> Tensor:
            if kept:
                ours, theirs = (side[rows, columns].contiguous() for side in kept)
            else:
                ours, theirs = part.products(hidden[rows]).contiguous(), teacher.products(rows, columns).contiguous()
            sums = grads[0][rows], inner[rows], student_sum[rows], teacher_sum[rows]
            return of_tile(ours, theirs, head, teacher.head, ctx.beta, *sums, head.weight.dtype)

        inputs, nothing = (hidden, weight, bias), (None,) * 4
        return *gradients(inputs, head, ctx.needs_input_grad, gradient, tile_size(hidden)), *nothing


def _elementwise(fused: bool) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[..., Tensor]]:
    if fused:
        from harness.lm.kernels.divergence_kernels import divergence_gradient, divergence_losses

        return divergence_losses, divergence_gradient
    return losses_in_blocks, gradient_in_blocks


def losses_in_blocks(student: Tensor, teacher: Tensor, head: Head, their_head: Head, beta: float) -> tuple[Tensor, ...]:
    """Return losses, sum q a, and both logsumexps (n,) of products (n, V); see `divergence_kernels.divergence_losses`."""
    found: list[tuple[Tensor, ...]] = []
    for rows in _blocks(student):
        logits, theirs = head.scaled(student[rows].clone()), their_head.scaled(teacher[rows].clone())
        sums = logits.logsumexp(-1), theirs.logsumexp(-1)
        logq, logp = logits.sub_(sums[0][:, None]), theirs.sub_(sums[1][:, None])
        q, p = logq.exp(), logp.exp()
        if beta == 1:
            losses = inner = _sum(q, logq - logp)
        elif beta == 0:
            losses, inner = _sum(p, logp - logq), torch.zeros_like(sums[0])
        else:
            mixture = _log_mixture(q, p, beta)
            inner = _sum(q, logq - mixture)
            losses = beta * _sum(p, logp - mixture) + (1 - beta) * inner
        found.append((losses, inner, *sums))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def gradient_in_blocks(
    student: Tensor, teacher: Tensor, head: Head, their_head: Head, beta: float,
    above: Tensor, inner: Tensor, student_sum: Tensor, teacher_sum: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return the gradient (n, v), in `dtype`, at a tile's products; see `divergence_kernels.divergence_gradient`."""
    out = torch.empty(student.shape, dtype=dtype, device=student.device)
    factor = above if beta in (0, 1) else above * (1 - beta)
    for rows in _blocks(student):
        logits, theirs = head.scaled(student[rows].clone()), their_head.scaled(teacher[rows].clone())
        logq, logp = logits - student_sum[rows, None], theirs.sub_(teacher_sum[rows, None])
        q = logq.exp()
        if beta == 0:
            grad = q.sub_(logp.exp_())
        else:
            other = logp if beta == 1 else _log_mixture(q, logp.exp_(), beta)
            grad = logq.sub_(other).sub_(inner[rows, None]).masked_fill_(q == 0, 0.0).mul_(q)
        out[rows] = head.to_linear(grad.mul_(factor[rows, None]), logits)
    return out


def _blocks(tile: Tensor) -> Iterator[slice]:
    return spans(max(1, len(tile)), max(1, BLOCK_ELEMENTS // tile.shape[1]))


def _log_mixture(q: Tensor, p: Tensor, beta: float) -> Tensor:
    # A sum that rounds to 0 stands where q rounds to 0 too, or nearly so.
    return (q * (1 - beta)).add_(p, alpha=beta).clamp_(min=torch.finfo(q.dtype).tiny).log_()


def _sum(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the sum of both's products (n,); where a probability is 0, the value may be infinite and adds nothing."""
    return values.masked_fill_(probabilities == 0, 0.0).mul_(probabilities).sum(-1)
