"""The weights of an output layer, its tiles of tokens and vocabulary, and products and gradients summed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

# Tokens and vocabulary entries of a tile: on a CPU they fit its caches, on other devices they keep the device busy.
TILES = {"cpu": (2048, 1024)}
LARGE_TILE = (4096, 8192)
# Logits of a chunk of whole rows, which the top K and the divergences need: 256 MiB in float32.
ROW_ELEMENTS = 2**26
# Devices whose autocast computes the products of the output layer in bfloat16; a CPU keeps its weights' precision.
NARROW_UNDER_AUTOCAST = {"cuda"}
Rows = Callable[[slice], Tensor]
# Tokens, vocabulary entries, and the part of the head with those entries, to the gradient (n, v) at the tile's products.
TileGradient = Callable[[slice, slice, "Head"], Tensor]


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
        """The factor on logits without a softcap."""
        return self.scale / self.temperature

    def part(self, columns: slice) -> Head:
        """Return the head of a part of the vocabulary."""
        return replace(self, weight=self.weight[columns], bias=None if self.bias is None else self.bias[columns])

    @torch.no_grad()
    def for_products(self, hidden: Tensor) -> Head:
        """Return the head for matrix products with `hidden`: a bfloat16 copy under a GPU's autocast, else this head.

        The copy is made for each pass, which takes a hundredth of the pass's time. It cannot be kept, because a fused
        optimiser changes weights without a sign that they changed.
        """
        kind = hidden.device.type
        if kind not in NARROW_UNDER_AUTOCAST or not torch.is_autocast_enabled(kind):
            return self
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return replace(self, weight=self.weight.to(torch.bfloat16), bias=bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float logits (n, V) of hidden states (n, H)."""
        return self.scaled(self.products(hidden))

    def scaled(self, raw: Tensor) -> Tensor:
        """Return logits from products, which it overwrites."""
        if self.softcap is None:
            return raw if self.factor == 1 else raw.mul_(self.factor)
        return raw.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)

    def products(self, hidden: Tensor) -> Tensor:
        """Return hidden @ weight.T + bias (n, V) in float32 or wider; a GPU does not round to the weights' dtype first."""
        if hidden.is_cuda and hidden.dtype != wide(hidden):
            raw = torch.mm(hidden, self.weight.T, out_dtype=wide(hidden))
            return raw if self.bias is None else raw.add_(self.bias)
        return nn.functional.linear(hidden, self.weight, self.bias).to(wide(self.weight))

    def to_linear(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Return the gradient (n, V) at the linear layer's output from `grad`, the one at the logits, which is overwritten."""
        if self.softcap is not None:
            grad.mul_(1 - (logits * (self.temperature / self.softcap)) ** 2)
        return grad if self.factor == 1 else grad.mul_(self.factor)


@dataclass(frozen=True)
class ModelRows:
    """A model's log-probabilities (n, V) at N positions, computed from its hidden states (N, H) when they are needed."""

    hidden: Tensor
    head: Head

    @torch.no_grad()
    def __call__(self, rows: slice) -> Tensor:
        """Return log-probabilities (n, V) of a slice of positions."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            return self.head.logits(self.hidden[rows]).log_softmax(-1)

    @torch.no_grad()
    def products(self, rows: slice, columns: slice = slice(None)) -> Tensor:
        """Return the products (n, v) of a tile, before scaling and softcap."""
        return self.head.part(columns).products(self.hidden[rows])


@dataclass(frozen=True)
class ScanResult:
    """What `scan` computes at N positions; log-probabilities are normalised over the vocabulary, in nats.

    `chosen` (N, C) at the ids; `entropy`, `logsumexp` (N,); `rest` (N,) of all tokens outside `held`; the K most probable
    tokens as `top_logprobs` (N, K) and `top_ids` (N, K).
    """

    chosen: Tensor
    entropy: Tensor
    logsumexp: Tensor
    rest: Tensor
    top_logprobs: Tensor
    top_ids: Tensor


def tile_size(hidden: Tensor) -> tuple[int, int]:
    """Return the number of tokens and of vocabulary entries in a tile."""
    return TILES.get(hidden.device.type, LARGE_TILE)


def whole_rows(vocabulary: int) -> int:
    """Return how many rows of the whole vocabulary are computed together, a multiple of 128 where they are so many."""
    rows = max(1, ROW_ELEMENTS // vocabulary)
    return rows if rows < 128 else rows // 128 * 128


def spans(count: int, size: int) -> Iterator[slice]:
    """Yield slices of length `size` that cover `count`; the last one may be shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total` without rounding the product to the inputs' dtype first."""
    if left.is_cuda and left.dtype != total.dtype:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, left.to(total.dtype), right.to(total.dtype), out=total)


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums and logits: float32, or float64 for float64 weights."""
    return torch.promote_types(tensor.dtype, torch.float32)


def gradients(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    head: Head,
    needed: tuple[bool, ...],
    gradient: TileGradient,
    tile: tuple[int, int],
) -> Iterator[Tensor | None]:
    """Yield the gradients of states (N, H), weight (V, H) and bias (V,), None where one is not needed.

    `head` is what is multiplied with: it has the inputs' weight, or its copy in another dtype. Sums over tiles are in float32
    or wider. The vocabulary is the outer loop, so that a part of the weight's gradient is rounded once, when it is complete.
    """
    hidden, weight, bias = inputs
    to_hidden = torch.zeros_like(hidden, dtype=wide(hidden)) if needed[0] else None
    to_weight = torch.empty_like(weight) if needed[1] else None
    to_bias = torch.empty_like(bias) if bias is not None and needed[2] else None
    for columns in spans(len(weight), tile[1]):
        part = head.part(columns)
        of_weight, of_bias = (None if total is None else _zeros(total[columns]) for total in (to_weight, to_bias))
        for rows in spans(len(hidden), tile[0]):
            narrow = gradient(rows, columns, part).to(part.weight.dtype)
            if to_hidden is not None:
                add_product(to_hidden[rows], narrow, part.weight)
            if of_weight is not None:
                add_product(of_weight, narrow.T, hidden[rows])
            if of_bias is not None:
                of_bias += narrow.sum(0, dtype=of_bias.dtype)
        for total, found in ((to_weight, of_weight), (to_bias, of_bias)):
            if total is not None and found is not None and found.dtype != total.dtype:
                total[columns] = found.to(total.dtype)
    yield None if to_hidden is None else to_hidden.to(hidden.dtype)
    yield to_weight
    yield to_bias


def _zeros(part: Tensor) -> Tensor:
    """Return zeros to add up a part of a gradient in: its own memory where that is float32 or wider."""
    return part.zero_() if part.dtype == wide(part) else torch.zeros_like(part, dtype=wide(part))
