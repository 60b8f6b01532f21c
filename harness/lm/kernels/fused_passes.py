"""Passes over the vocabulary with one matrix product and one kernel for each tile, and a check that they work on a device.

The passes of `harness.lm.output_layer` without kernels read and write a tile about twelve times. Here a tile of products is
written once and read once in each pass. In the backward pass the vocabulary is the outer loop, so the gradient of a part of
the head is complete after its tiles and can be rounded to the weights' dtype.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from harness.lm.kernels.divergence_kernels import divergence_gradient, divergence_losses
from harness.lm.kernels.selected_kernels import GROUP, RunningSums, largest, selected_gradient
from harness.lm.tiles import Head, ModelRows, ScanResult, add_product, spans, tile_size, wide

# Logits in a chunk of whole rows, for top K and divergences: 256 MiB in float32.
ROW_ELEMENTS = 2**26
Tile = Callable[[slice, slice, Head], Tensor]


def fused_scan(hidden: Tensor, head: Head, ids: Tensor, top_k: int, held: Tensor | None) -> ScanResult:
    """Return what `output_layer.scan` returns."""
    tokens, width = tile_size(hidden)
    if top_k:
        tokens, width = whole_rows(len(head.weight)), len(head.weight)
    blocks: list[tuple[Tensor, ...]] = []
    for rows in spans(max(1, len(hidden)), tokens):
        running = RunningSums(ids[rows], wide(head.weight), None if held is None else held[rows])
        top, top_ids = running.chosen[:, :0], ids[rows, :0]
        for columns in spans(len(head.weight), width):
            raw = head.part(columns).products(hidden[rows]).contiguous()
            maxima = raw.new_empty(len(raw), -(-raw.shape[1] // GROUP)) if top_k else None
            running.add(raw, columns.start, head, maxima)
            if maxima is not None:
                top, top_ids = largest(raw, maxima, head, min(top_k, raw.shape[1]))
        chosen, entropy, logsumexp, rest = running.result()
        blocks.append((chosen, entropy, logsumexp, rest, top - logsumexp[:, None], top_ids))
    return ScanResult(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def whole_rows(vocabulary: int) -> int:
    """Return how many rows of the whole vocabulary are computed together: a multiple of 128 if there are at least 128."""
    rows = max(1, ROW_ELEMENTS // vocabulary)
    return rows if rows < 128 else rows // 128 * 128


def selected_backward(ctx: Any, above: Tensor, above_rest: Tensor | None) -> Iterator[Tensor | None]:
    """Yield the gradients of hidden states, weight and bias of `output_layer.SelectedLogProbs`."""
    hidden, weight, bias, ids, logsumexp, held, rest = ctx.saved_tensors
    head: Head = ctx.head

    def gradient(rows: slice, columns: slice, part: Head) -> Tensor:
        raw = part.products(hidden[rows]).contiguous()
        apart = None if held is None or above_rest is None else (held[rows], above_rest[rows], rest[rows])
        own = ids[rows], above[rows], logsumexp[rows], head.weight.dtype
        return selected_gradient(raw, columns.start, head, *own, apart)

    yield from _gradients((hidden, weight, bias), head, ctx.needs_input_grad, gradient)


class FusedDivergence(torch.autograd.Function):
    """The generalised Jensen-Shannon divergence (N,) from a teacher's hidden states; see `divergence_kernels`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, teacher: Any, beta: float
    ) -> Tensor:
        """Compute the losses of chunks of rows; weight and bias are the head's, passed separately for autograd."""
        size = whole_rows(len(weight)) // 2 or 1  # student and teacher
        found = [
            divergence_losses(
                head.products(hidden[rows]).contiguous(), teacher.products(rows).contiguous(), head, teacher.head, beta
            )
            for rows in spans(max(1, len(hidden)), size)
        ]
        losses, *sums = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, bias, *sums)
        ctx.head, ctx.teacher, ctx.beta = head, teacher, beta
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Compute each tile's logits of both sides again, with the sums over whole rows from the forward pass."""
        hidden, weight, bias, inner, student_sum, teacher_sum = ctx.saved_tensors
        head, teacher = ctx.head, ctx.teacher

        def gradient(rows: slice, columns: slice, part: Head) -> Tensor:
            ours, theirs = part.products(hidden[rows]), teacher.products(rows, columns)
            kept = grads[0][rows], inner[rows], student_sum[rows], teacher_sum[rows]
            sides = ours.contiguous(), theirs.contiguous(), head, teacher.head
            return divergence_gradient(*sides, ctx.beta, *kept, head.weight.dtype)

        return *_gradients((hidden, weight, bias), head, ctx.needs_input_grad, gradient), None, None, None


def _gradients(
    inputs: tuple[Tensor, Tensor, Tensor | None], head: Head, needed: tuple[bool, ...], gradient: Tile
) -> Iterator[Tensor | None]:
    """Yield the gradients of hidden states (N, H), weight (V, H) and bias (V,) from those at the products of each tile.

    Sums over tiles are in float32 or wider.
    """
    hidden, weight, bias = inputs
    to_hidden = torch.zeros_like(hidden, dtype=wide(hidden)) if needed[0] else None
    to_weight = torch.empty_like(weight) if needed[1] else None
    to_bias = torch.empty_like(bias) if bias is not None and needed[2] else None
    tokens, width = tile_size(hidden)
    for columns in spans(len(weight), width):
        part = head.part(columns)
        of_weight = torch.zeros(part.weight.shape, dtype=wide(hidden), device=hidden.device)
        of_bias = of_weight.new_zeros(len(of_weight))
        for rows in spans(len(hidden), tokens):
            narrow = gradient(rows, columns, part)
            if to_hidden is not None:
                add_product(to_hidden[rows], narrow, part.weight)
            if to_weight is not None:
                add_product(of_weight, narrow.T, hidden[rows])
            if to_bias is not None:
                of_bias += narrow.sum(0, dtype=of_bias.dtype)
        if to_weight is not None:
            to_weight[columns] = of_weight.to(to_weight.dtype)
        if to_bias is not None:
            to_bias[columns] = of_bias.to(to_bias.dtype)
    yield None if to_hidden is None else to_hidden.to(hidden.dtype)
    yield to_weight
    yield to_bias


def kernels_work(device: torch.device, selected: Callable[..., Any]) -> bool:
    """Return whether the kernels compile on a device and give the numbers of full logits; warn where they do not.

    `selected` is `output_layer.SelectedLogProbs.apply`, which calls them.
    """
    # A missing compiler, driver or build tool raises an error of its own class.
    try:
        apart = _distance_from_full_logits(device, selected)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    else:
        if apart <= 1e-3:
            return True
        reason = f"they differ from full logits by {apart:.2g}, expected at most 0.001"
    warnings.warn(
        f"the fused kernels of the output layer do not work on {device} ({reason}); the slower passes without kernels "
        "are used",
        stacklevel=2,
    )
    return False


@torch.no_grad()
def _distance_from_full_logits(device: torch.device, selected: Callable[..., Any]) -> float:
    """Return the largest difference of log-probabilities, top K, divergence and their gradients, on a small input."""
    draw = torch.Generator().manual_seed(0)
    states, weight, theirs = (torch.randn(n, 16, generator=draw).to(device) for n in (3, 200, 3))
    ids = torch.tensor([[5, 5, 190], [0, 7, 199], [64, 63, 1]], device=device)
    held, above, head = ids[:, 1:], torch.ones(3, device=device), Head(weight)
    apart: list[Tensor] = []
    with torch.enable_grad():
        leaves = [t.clone().requires_grad_() for t in (states, weight, states, weight)]
        scan = fused_scan(states, head, ids, 4, None)
        chosen, _, _, rest = selected(leaves[0], leaves[1], None, ids, head, held)
        loss = FusedDivergence.apply(leaves[0], leaves[1], None, head, ModelRows(theirs, head), 0.5)
        logq, logp = (leaves[2] @ leaves[3].T).log_softmax(-1), (theirs @ weight.T).log_softmax(-1)
        mixture = torch.logaddexp(logq, logp) - torch.log(torch.tensor(2.0))
        outside = logq.scatter(-1, held, -torch.inf).logsumexp(-1)
        expected = ((logq.exp() * (logq - mixture)).sum(-1) + (logp.exp() * (logp - mixture)).sum(-1)) / 2
        for ours, full in ((chosen, logq.gather(-1, ids)), (rest, outside), (loss, expected)):
            apart.append((ours - full).abs().max())
        found = torch.autograd.grad(chosen.sum() + (rest * above).sum() + loss.sum(), leaves[:2])
        wanted = torch.autograd.grad(logq.gather(-1, ids).sum() + outside.sum() + expected.sum(), leaves[2:])
    apart += [(ours - full).abs().max() for ours, full in zip(found, wanted, strict=True)]
    apart.append((scan.top_logprobs - logq.topk(4).values).abs().max())
    return float(torch.stack(apart).max())
