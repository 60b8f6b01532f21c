"""Passes over the output layer, without a tensor of (tokens, vocabulary) logits.

They go tile by tile. A tile of tokens and vocabulary fits into a processor's caches, so elementwise work on logits is cheap
compared with the matrix products. The backward pass computes the logits again: four products, where stored logits need three.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.errors import ModelError
from harness.lm.tiles import (
    Head,
    Rows,
    ScanResult,
    gradients,
    spans,
    tile_size,
    wide,
)

# Tiles for a top K are this many times wider and shorter, because torch sorts short rows slowly.
LONGER = 8
# Logits in a chunk of rows, for losses that need the whole vocabulary at once.
CHUNK_ELEMENTS = 2**23
# Devices on which one Triton kernel (`harness.lm.kernels`) does a tile's elementwise work, if it compiles and is correct.
FUSED = {"cuda"}
# Devices on which ids outside the output layer are refused. On others the check would wait, so the scores become nan instead.
REFUSES_IDS_AT_ONCE = {"cpu"}
CHECKED: set[torch.device] = set()
Divergence = Callable[[Tensor, Tensor], Tensor]


class SelectedLogProbs(torch.autograd.Function):
    """Log-probabilities (N, C) at `ids` (N, C) with gradient; entropy and logsumexp (N,) without gradient.

    The fourth output is the log-probability (N,) of all tokens outside `held` (N, K) together, with gradient; None without
    `held`.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, head: Head, held: Tensor | None
    ) -> Any:
        """Scan the vocabulary once; weight and bias are the head's, passed separately so that autograd sees them."""
        found = scan(hidden, head, ids, held=held)
        ctx.save_for_backward(hidden, weight, bias, ids, found.logsumexp, held, found.rest)
        ctx.head, ctx.fused = head, fused_on(hidden.device)
        ctx.mark_non_differentiable(found.entropy, found.logsumexp)
        return found.chosen, found.entropy, found.logsumexp, None if held is None else found.rest

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Per tile: dL/dz = scatter(g) - sum(g) softmax, then the gradients of hidden states and head.

        The log-probability of the rest adds its own softmax, over the tokens outside `held`.
        """
        hidden, weight, bias, ids, logsumexp, held, rest = ctx.saved_tensors
        above = grads[0].sum(-1, keepdim=True) + (0 if held is None else grads[3][:, None])

        def gradient(rows: slice, columns: slice, part: Head) -> Tensor:
            logits = part.logits(hidden[rows])
            grad = torch.exp_(logits - logsumexp[rows, None]).mul_(-above[rows])
            local, inside = within(ids[rows], columns)
            grad.scatter_add_(-1, local, torch.where(inside, grads[0][rows], 0.0))
            if held is not None:
                whole = (rest[rows] + logsumexp[rows])[:, None].clamp(min=torch.finfo(logits.dtype).min)
                share = torch.exp_(logits - whole).masked_fill_(marked(held[rows], columns), 0.0)
                grad += share.mul_(grads[3][rows, None])
            return part.to_linear(grad, logits)

        of_tile = gradient
        if ctx.fused:
            from harness.lm.kernels.fused_passes import fused_gradient

            of_tile = fused_gradient(ctx, grads[0], grads[3])
        inputs = hidden, weight, bias
        return *gradients(inputs, ctx.head, ctx.needs_input_grad, of_tile, tile_size(hidden)), None, None, None


class WholeVocabulary(torch.autograd.Function):
    """`divergence(log q, log p)` (N,) over the whole vocabulary, in chunks of tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, teacher: Rows, divergence: Divergence
    ) -> Tensor:
        """Compute the losses; weight and bias are the head's, passed separately so that autograd sees them."""
        ctx.save_for_backward(hidden, weight, bias)
        ctx.head, ctx.teacher, ctx.divergence = head, teacher, divergence
        chunks = spans(max(1, len(hidden)), rows_in_chunk(weight))
        return torch.cat([divergence(head.logits(hidden[c]).log_softmax(-1), teacher(c)) for c in chunks])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Compute each chunk's logits again and differentiate the divergence there."""
        hidden, weight, bias = ctx.saved_tensors

        def gradient(rows: slice, _: slice, head: Head) -> Tensor:
            logits = head.logits(hidden[rows])
            grad = _divergence_gradient(logits, ctx.teacher(rows), ctx.divergence, grads[0][rows])
            return head.to_linear(grad, logits)

        inputs, tile = (hidden, weight, bias), (rows_in_chunk(weight), len(weight))
        return *gradients(inputs, ctx.head, ctx.needs_input_grad, gradient, tile), None, None, None


def _divergence_gradient(logits: Tensor, logp: Tensor, divergence: Divergence, above: Tensor) -> Tensor:
    """Return d loss / d logits (n, V); zeros if the divergence has no gradient."""
    logq = logits.log_softmax(-1).requires_grad_()
    with torch.enable_grad():
        losses = divergence(logq, logp)
    if not losses.requires_grad:
        return torch.zeros_like(logits)
    (grad,) = torch.autograd.grad(losses, logq, above)
    return grad - logq.detach().exp_().mul_(grad.sum(-1, keepdim=True))


def scan(hidden: Tensor, head: Head, ids: Tensor, top_k: int = 0, held: Tensor | None = None) -> ScanResult:
    """Go once over the vocabulary of N positions, tile by tile; `hidden` is (N, H), `ids` (N, C), `held` (N, K).

    Raises `ModelError` for ids outside the output layer.
    """
    _refuse_ids_outside(ids, head)
    if fused_on(hidden.device):
        from harness.lm.kernels.fused_passes import fused_scan

        return _outside_is_nan(fused_scan(hidden, head, ids, top_k, held), ids, head)
    tokens, width = tile_size(hidden)
    if top_k:
        tokens, width = max(1, tokens // LONGER), width * LONGER
    blocks: list[tuple[Tensor, ...]] = []
    for rows in spans(max(1, len(hidden)), tokens):
        running = _Running(ids[rows], wide(head.weight), top_k, None if held is None else held[rows])
        for columns in spans(len(head.weight), width):
            running.add(head.part(columns).logits(hidden[rows]), columns)
        blocks.append(running.result())
    return _outside_is_nan(ScanResult(*(torch.cat(parts) for parts in zip(*blocks, strict=True))), ids, head)


def fused_on(device: torch.device) -> bool:
    """Return whether kernels do a tile's elementwise work; on a GPU they are tested once, on a small input."""
    if device.type not in FUSED:
        return False
    if device.type != "cpu" and device not in CHECKED:
        CHECKED.add(device)  # the test itself calls this function
        if importlib.util.find_spec("triton") is None:
            FUSED.discard(device.type)
            return False
        from harness.lm.kernels.fused_passes import kernels_work

        if not kernels_work(device, SelectedLogProbs.apply):
            FUSED.discard(device.type)
    return device.type in FUSED


def _outside_is_nan(found: ScanResult, ids: Tensor, head: Head) -> ScanResult:
    """Return the scores with nan for ids outside the output layer, on devices where such ids are not refused."""
    if ids.device.type in REFUSES_IDS_AT_ONCE:
        return found
    outside = (ids < 0) | (ids >= len(head.weight))
    return replace(found, chosen=found.chosen.masked_fill(outside, torch.nan))


def _refuse_ids_outside(ids: Tensor, head: Head) -> None:
    if ids.device.type not in REFUSES_IDS_AT_ONCE:
        return
    rows = len(head.weight)
    lowest, highest = torch.stack(torch.aminmax(ids)).tolist() if ids.numel() else (0, 0)
    if lowest < 0 or highest >= rows:
        raise ModelError(
            f"found token ids from {lowest} to {highest}, expected 0 to {rows - 1}, the rows of the output layer; check that "
            "tokenizer, student and teacher belong together"
        )


class _Running:
    """Sums over the tiles read so far, at n positions: exp(z - peak), exp(z - peak) z, z at the ids, the top K.

    `rest` is the logarithm of the sum of exp(z) outside `held`; computing it as 1 minus the held part would cancel.
    """

    def __init__(self, ids: Tensor, dtype: torch.dtype, top_k: int, held: Tensor | None) -> None:
        zeros = torch.zeros(len(ids), dtype=dtype, device=ids.device)
        self.ids, self.top_k, self.held = ids, top_k, held
        self.rest = zeros - torch.inf
        self.peak, self.mass, self.moment = zeros + torch.finfo(dtype).min, zeros, zeros
        self.chosen = zeros[:, None].repeat(1, ids.shape[1])
        self.top, self.top_ids = self.chosen[:, :0], ids[:, :0]

    def result(self) -> tuple[Tensor, ...]:
        """Return the fields of `ScanResult`."""
        logsumexp = self.peak + self.mass.log()
        shift = logsumexp[:, None]
        entropy = logsumexp - self.moment / self.mass
        return self.chosen - shift, entropy, logsumexp, self.rest - logsumexp, self.top - shift, self.top_ids

    def add(self, logits: Tensor, columns: slice) -> None:
        """Add the logits (n, v) of the next tile."""
        local, inside = within(self.ids, columns)
        self.chosen = torch.where(inside, logits.gather(-1, local), self.chosen)
        if self.top_k:
            self._add_top(logits, columns)
        if self.held is not None:
            part = logits.masked_fill(marked(self.held, columns), -torch.inf).logsumexp(-1)
            self.rest = torch.logaddexp(self.rest, part)
        peak = torch.maximum(self.peak, logits.amax(-1))
        kept, exponentials = torch.exp(self.peak - peak), torch.exp_(logits - peak[:, None])
        self.mass = self.mass * kept + exponentials.sum(-1)
        # A logit of -inf adds nothing to the entropy, but 0 * -inf would be nan.
        self.moment = self.moment * kept + exponentials.mul_(logits.clamp_(min=torch.finfo(logits.dtype).min)).sum(-1)
        self.peak = peak

    def _add_top(self, logits: Tensor, columns: slice) -> None:
        new = logits.topk(min(self.top_k, logits.shape[1]), dim=-1)
        values = torch.cat([self.top, new.values], dim=-1)
        self.top, order = values.topk(min(self.top_k, values.shape[1]), dim=-1)
        self.top_ids = torch.cat([self.top_ids, new.indices + columns.start], dim=-1).gather(-1, order)


def rows_in_chunk(weight: Tensor) -> int:
    """Return the tokens of a chunk with about CHUNK_ELEMENTS logits."""
    return max(1, CHUNK_ELEMENTS // len(weight))


def within(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return ids counted from a tile's first column, clamped to the tile, and which of them lie inside it."""
    local = ids - columns.start
    return local.clamp(0, columns.stop - columns.start - 1), (local >= 0) & (ids < columns.stop)


def marked(ids: Tensor, columns: slice) -> Tensor:
    """Return a mask (n, v) of a tile's columns that are among ids (n, K)."""
    local, inside = within(ids, columns)
    counts = torch.zeros(len(ids), columns.stop - columns.start, dtype=torch.int32, device=ids.device)
    return counts.scatter_add_(-1, local, inside.int()) > 0
