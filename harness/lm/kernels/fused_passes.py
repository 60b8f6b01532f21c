"""Passes over the vocabulary with one matrix product and one kernel for each tile, and a check that they work on a device.

The passes of `harness.lm.output_layer` without kernels read and write a tile about twelve times. Here a tile of products is
written once and read once in each pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.lm.kernels.model_divergence import ModelDivergence
from harness.lm.kernels.selected_kernels import GROUP, RunningSums, largest, selected_gradient
from harness.lm.tiles import Head, ModelRows, ScanResult, TileGradient, spans, tile_size, whole_rows, wide


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


def fused_gradient(ctx: Any, above: Tensor, above_rest: Tensor | None) -> TileGradient:
    """Return the gradient at a tile's products in the backward pass of `output_layer.SelectedLogProbs`."""
    hidden, _, _, ids, logsumexp, held, rest = ctx.saved_tensors
    head: Head = ctx.head

    def gradient(rows: slice, columns: slice, part: Head) -> Tensor:
        raw = part.products(hidden[rows]).contiguous()
        apart = None if held is None or above_rest is None else (held[rows], above_rest[rows], rest[rows])
        own = ids[rows], above[rows], logsumexp[rows], head.weight.dtype
        return selected_gradient(raw, columns.start, head, *own, apart)

    return gradient


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
        loss = ModelDivergence.apply(leaves[0], leaves[1], None, head, ModelRows(theirs, head), 0.5, True)
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
