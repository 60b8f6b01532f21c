"""The output layer, and passes over it that never hold (tokens, vocabulary) logits.

A tile of tokens and vocabulary is small enough for a processor's caches, so what is done to logits elementwise costs little
beside the matrix products. The backward computes logits again: four products where full logits, kept, need three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.lm.output_layer_gradients import Gradients, wide

# Tokens and vocabulary of a tile: on a CPU what its caches hold, elsewhere what keeps the device busy.
TILES = {"cpu": (2048, 1024)}
LARGE_TILE = (4096, 8192)
# How much longer, and fewer, the rows are where the most probable tokens are looked for: short rows take a slow sort.
LONGER = 8
# Where a loss needs whole rows of the vocabulary: the elements of a chunk of rows.
CHUNK_ELEMENTS = 2**24
Rows = Callable[[slice], Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Head:
    """The output layer: logits = softcap(scale * (hidden @ weight.T + bias)) / temperature."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def factor(self) -> float:
        """What logits are multiplied by, the cap aside."""
        return self.scale / self.temperature

    def part(self, columns: slice) -> Head:
        """Return the head of a part of the vocabulary."""
        return replace(self, weight=self.weight[columns], bias=None if self.bias is None else self.bias[columns])

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float logits (n, V) of hidden states (n, H)."""
        raw = nn.functional.linear(hidden, self.weight, self.bias).to(wide(self.weight))
        if self.softcap is None:
            return raw if self.factor == 1 else raw.mul_(self.factor)
        return raw.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)

    def to_linear(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Return the gradient (n, V) at the linear layer's output, given that at the logits, which is overwritten."""
        if self.softcap is not None:
            grad.mul_(1 - (logits * (self.temperature / self.softcap)) ** 2)
        return grad if self.factor == 1 else grad.mul_(self.factor)


class SelectedLogProbs(torch.autograd.Function):
    """Log-probabilities (N, C) at `ids` (N, C) with gradient, entropy and logsumexp (N,) without.

    And with gradient that of all tokens but `held` (N, K) together, (N,); None where nothing is held.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, head: Head, held: Tensor | None
    ) -> Any:
        """Scan the vocabulary once; weight and bias are those of the head, given apart so that autograd sees them."""
        seen = scan(hidden, head, ids, held=held)
        ctx.save_for_backward(hidden, weight, bias, ids, seen.logsumexp, held, seen.rest)
        ctx.head = head
        ctx.mark_non_differentiable(seen.entropy, seen.logsumexp)
        return seen.chosen, seen.entropy, seen.logsumexp, None if held is None else seen.rest

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Per tile: dL/dz = scatter(g) - sum(g) softmax, and on to hidden states and head.

        The rest adds its own softmax, over the tokens that are not held, to the first term.
        """
        hidden, weight, bias, ids, logsumexp, held, rest = ctx.saved_tensors
        above = grads[0].sum(-1, keepdim=True) + (0 if held is None else grads[3][:, None])
        total = Gradients(hidden, weight, bias, ctx.needs_input_grad)
        tokens, width = tile_size(hidden)
        for rows, columns in product(spans(len(hidden), tokens), spans(len(weight), width)):
            part = ctx.head.part(columns)
            logits = part.logits(hidden[rows])
            grad = torch.exp_(logits - logsumexp[rows, None]).mul_(-above[rows])
            local, inside = within(ids[rows], columns)
            grad.scatter_add_(-1, local, torch.where(inside, grads[0][rows], 0.0))
            if held is not None:
                whole = (rest[rows] + logsumexp[rows])[:, None].clamp(min=torch.finfo(logits.dtype).min)
                share = torch.exp_(logits - whole).masked_fill_(marked(held[rows], columns), 0.0)
                grad += share.mul_(grads[3][rows, None])
            total.add(rows, columns, part.to_linear(grad, logits))
        return *total.result(), None, None, None


class WholeVocabulary(torch.autograd.Function):
    """`divergence(log q, log p)` (N,), rows of the vocabulary in chunks of tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, teacher: Rows, divergence: Divergence
    ) -> Tensor:
        """Compute the losses; weight and bias are those of the head, given apart so that autograd sees them."""
        ctx.save_for_backward(hidden, weight, bias)
        ctx.head, ctx.teacher, ctx.divergence = head, teacher, divergence
        chunks = row_chunks(hidden, weight)
        return torch.cat([divergence(head.logits(hidden[c]).log_softmax(-1), teacher(c)) for c in chunks])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Compute each chunk's rows again and differentiate the divergence there."""
        hidden, weight, bias = ctx.saved_tensors
        total = Gradients(hidden, weight, bias, ctx.needs_input_grad)
        for rows in row_chunks(hidden, weight):
            logits = ctx.head.logits(hidden[rows])
            grad = _divergence_gradient(logits, ctx.teacher(rows), ctx.divergence, grads[0][rows])
            total.add(rows, slice(0, len(weight)), ctx.head.to_linear(grad, logits))
        return *total.result(), None, None, None


def _divergence_gradient(logits: Tensor, logp: Tensor, divergence: Divergence, above: Tensor) -> Tensor:
    """Return d loss / d logits (n, V), zeros where the divergence is a number without gradient."""
    logq = logits.log_softmax(-1).requires_grad_()
    with torch.enable_grad():
        losses = divergence(logq, logp)
    if not losses.requires_grad:
        return torch.zeros_like(logits)
    (grad,) = torch.autograd.grad(losses, logq, above)
    return grad - logq.detach().exp_().mul_(grad.sum(-1, keepdim=True))


@dataclass(frozen=True)
class ScanResult:
    """Log-probabilities of N positions at C ids, of all but the held, and of the top K; entropy and logsumexp."""

    chosen: Tensor
    entropy: Tensor
    logsumexp: Tensor
    rest: Tensor
    top_logprobs: Tensor
    top_ids: Tensor


def scan(hidden: Tensor, head: Head, ids: Tensor, top_k: int = 0, held: Tensor | None = None) -> ScanResult:
    """Go once over the vocabulary of N positions, tile by tile; `hidden` is (N, H), `ids` (N, C), `held` (N, K)."""
    _refuse_other_ids(ids, head)
    tokens, width = tile_size(hidden)
    if top_k:
        tokens, width = max(1, tokens // LONGER), width * LONGER
    blocks: list[tuple[Tensor, ...]] = []
    for rows in spans(max(1, len(hidden)), tokens):
        running = _Running(ids[rows], wide(head.weight), top_k, None if held is None else held[rows])
        for columns in spans(len(head.weight), width):
            running.add(head.part(columns).logits(hidden[rows]), columns)
        blocks.append(running.result())
    return ScanResult(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _refuse_other_ids(ids: Tensor, head: Head) -> None:
    rows = len(head.weight)
    lowest, highest = torch.stack(torch.aminmax(ids)).tolist() if ids.numel() else (0, 0)
    if lowest < 0 or highest >= rows:
        raise ModelError(
            f"token ids from {lowest} to {highest} were asked for, but the output layer has {rows} rows; the tokenizer, or "
            "the other model's vocabulary, does not fit"
        )


class _Running:
    """What the tiles so far say of n positions: sums of exp(z - peak) and of exp(z - peak) z, z at the ids, the top K.

    And the logarithm of the sum of exp(z) over all that is not held, which a difference from the whole would lose.
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
        """Take in the next tile, (n, v)."""
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
        # Where a logit is -inf, 0 times -inf would be nan; it adds nothing to the entropy.
        self.moment = self.moment * kept + exponentials.mul_(logits.clamp_(min=torch.finfo(logits.dtype).min)).sum(-1)
        self.peak = peak

    def _add_top(self, logits: Tensor, columns: slice) -> None:
        new = logits.topk(min(self.top_k, logits.shape[1]), dim=-1)
        values = torch.cat([self.top, new.values], dim=-1)
        self.top, order = values.topk(min(self.top_k, values.shape[1]), dim=-1)
        self.top_ids = torch.cat([self.top_ids, new.indices + columns.start], dim=-1).gather(-1, order)


def tile_size(hidden: Tensor) -> tuple[int, int]:
    """Return the tokens and the part of the vocabulary that a tile covers."""
    return TILES.get(hidden.device.type, LARGE_TILE)


def row_chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Yield chunks of tokens whose rows over the whole vocabulary have CHUNK_ELEMENTS elements; one where there are none."""
    return spans(max(1, len(hidden)), max(1, CHUNK_ELEMENTS // len(weight)))


def spans(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `size`, the last one shorter, that cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def within(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return ids counted from a tile's first column, and which of them lie in it; the others are moved to its edge."""
    local = ids - columns.start
    return local.clamp(0, columns.stop - columns.start - 1), (local >= 0) & (ids < columns.stop)


def marked(ids: Tensor, columns: slice) -> Tensor:
    """Return which columns (n, v) of a tile are among ids (n, K)."""
    local, inside = within(ids, columns)
    counts = torch.zeros(len(ids), columns.stop - columns.start, dtype=torch.int32, device=ids.device)
    return counts.scatter_add_(-1, local, inside.int()) > 0
