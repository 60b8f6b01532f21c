"""The output layer by full logits with autograd: what the tiled operation must equal, on a CPU and on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.lm.logprobs import Head
from tests.support.models import rollout

N, H, V, C = 7, 5, 11, 4
# Of 7 tokens and 11 words: single cells, edges that do not come out even, one side cut, one tile larger than all.
TILES = [(1, 1), (3, 4), (100, 4), (3, 100), (100, 100)]
SEQUENCES = [rollout([3, 4, 5], [6, 7, 2]), rollout([8], [9, 2]), rollout([3, 1, 4, 1, 5], [9]), rollout([5, 6], [2])]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "bias": {"bias": True},
    "all": {"temperature": 1.7, "scale": 1.3, "softcap": 3.0, "bias": True},
}


def inputs(variant: str, rows: int = N) -> tuple[Tensor, Head, Tensor, Tensor]:
    """Return hidden states, a head, ids with a repetition in each row, and the gradient that arrives from above."""
    generator = torch.Generator().manual_seed(3)
    options = dict(VARIANTS[variant])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    bias = normal(V).requires_grad_() if options.pop("bias", False) else None
    head = Head(normal(V, H).requires_grad_(), bias, **options)
    ids = torch.randint(V, (rows, C), generator=generator)
    ids[:, 1] = ids[:, 0]
    return normal(rows, H).requires_grad_(), head, ids, normal(rows, C)


def dense(hidden: Tensor, head: Head, ids: Tensor) -> Tensor:
    """Return the same by full logits."""
    return full(hidden, head).log_softmax(-1).gather(-1, ids)


def full(hidden: Tensor, head: Head) -> Tensor:
    raw = hidden @ head.weight.T
    raw = head.scale * (raw if head.bias is None else raw + head.bias)
    capped = raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap)
    return capped / head.temperature


def assert_same_leaf_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    pairs = zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, list | tuple) else [result]
        # Bytes are how Triton's interpreter reads a tensor.
        made = [value.numel() for value in found if isinstance(value, Tensor) and value.dtype != torch.uint8]
        self.elements = max([self.elements, *made])
        return result
