"""Gradients of hidden states and output layer, added up from tiles in float32 or wider."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Gradients:
    """Gradients of hidden states and head, those that are needed, added up from tiles in float32 or wider."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.inputs = (hidden, weight, bias)
        self.sums = [
            torch.zeros_like(leaf, dtype=wide(leaf)) if leaf is not None and need else None
            for leaf, need in zip(self.inputs, needed, strict=False)
        ]

    def add(self, rows: slice, columns: slice, grad: Tensor) -> None:
        """Add what the gradient (n, v) at the linear layer's output says."""
        (hidden, weight, _), (to_hidden, to_weight, to_bias) = self.inputs, self.sums
        narrow = grad.to(weight.dtype)
        if to_hidden is not None:
            _add_product(to_hidden[rows], narrow, weight[columns])
        if to_weight is not None:
            _add_product(to_weight[columns], narrow.T, hidden[rows])
        if to_bias is not None:
            to_bias[columns] += grad.sum(0)

    def result(self) -> Iterator[Tensor | None]:
        """Return the sums as their inputs' types."""
        for leaf, total in zip(self.inputs, self.sums, strict=True):
            yield None if total is None or leaf is None else total.to(leaf.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total` without rounding the product to the inputs' type first."""
    if left.is_cuda and left.dtype != total.dtype:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, left.to(total.dtype), right.to(total.dtype), out=total)


def wide(tensor: Tensor) -> torch.dtype:
    """Return the type that sums and logits are kept in: float32, or float64 where the weights are."""
    return torch.promote_types(tensor.dtype, torch.float32)
