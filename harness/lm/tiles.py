"""The weights of an output layer, its tiles of tokens and vocabulary, and matrix products that are summed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

# Tokens and vocabulary entries of a tile: on a CPU they fit its caches, on other devices they keep the device busy.
TILES = {"cpu": (2048, 1024)}
LARGE_TILE = (4096, 8192)
# Devices whose autocast computes the products of the output layer in bfloat16; a CPU keeps its weights' precision.
NARROW_UNDER_AUTOCAST = {"cuda"}
Rows = Callable[[slice], Tensor]


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
        raw = self.products(hidden)
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
