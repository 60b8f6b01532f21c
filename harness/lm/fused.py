# pyright: standard
# triton has no types.
"""Everything elementwise of a tile of logits in one kernel each way, after the matrix product (Triton).

The tiled passes of `harness.lm.output_layer` read and write a tile of logits about twelve times. Here a program owns a row of
the tile and reads it once: forward it updates the running sums of the log-softmax and picks the chosen ids; backward it writes
the gradient in the dtype of the next products. Off unless a device is in `output_layer.FUSED`: it is tested against float64
through Triton's interpreter, and its speed on a GPU is not measured yet (`make bench DEVICE=cuda`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _scaled(raw, scale, temperature, softcap, CAPPED: tl.constexpr):
    if CAPPED:
        # tanh(x) = 2 sigmoid(2x) - 1
        return (2 / (1 + tl.exp(-2 * raw * scale / softcap)) - 1) * (softcap / temperature)
    return raw * (scale / temperature)


@triton.jit
def _to_raw(grad, logits, scale, temperature, softcap, CAPPED: tl.constexpr):
    if CAPPED:
        share = logits * (temperature / softcap)
        return grad * (1 - share * share) * (scale / temperature)
    return grad * (scale / temperature)


@triton.jit
def _scan(
    raw, ids, chosen, peak, mass, moment,
    width, first, count, scale, temperature, softcap,
    CAPPED: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    m, s, t = tl.load(peak + row), tl.load(mass + row), tl.load(moment + row)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < width
        z = _scaled(tl.load(raw + row * width + place, mask=inside, other=0.0), scale, temperature, softcap, CAPPED)
        z = tl.where(inside, z, -float("inf"))
        top = tl.maximum(m, tl.max(z, 0))
        part, kept = tl.exp(z - top), tl.exp(m - top)
        s = s * kept + tl.sum(part, 0)
        # A logit of -inf adds nothing to the entropy, but 0 * -inf would be nan.
        t = t * kept + tl.sum(tl.where(part > 0, part * z, 0.0), 0)
        m = top
    tl.store(peak + row, m)
    tl.store(mass + row, s)
    tl.store(moment + row, t)
    column = tl.arange(0, COLUMNS)
    local = tl.load(ids + row * count + column, mask=column < count, other=-1) - first
    here = (column < count) & (local >= 0) & (local < width)
    z = _scaled(tl.load(raw + row * width + local, mask=here, other=0.0), scale, temperature, softcap, CAPPED)
    tl.store(chosen + row * count + column, z, mask=here)


@triton.jit
def _gradient(
    raw, ids, above, total, logsumexp, out,
    width, first, count, scale, temperature, softcap,
    CAPPED: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lse, every = tl.load(logsumexp + row), tl.load(total + row)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < width
        z = _scaled(tl.load(raw + row * width + place, mask=inside, other=0.0), scale, temperature, softcap, CAPPED)
        grad = _to_raw(-every * tl.exp(z - lse), z, scale, temperature, softcap, CAPPED)
        tl.store(out + row * width + place, grad, mask=inside)
    # The chosen columns are written again, with their own gradient; an id that is chosen twice has the sum of both.
    tl.debug_barrier()
    column = tl.arange(0, COLUMNS)
    id = tl.load(ids + row * count + column, mask=column < count, other=-1)
    own = tl.load(above + row * count + column, mask=column < count, other=0.0)
    sums = tl.sum(tl.where(id[:, None] == id[None, :], own[None, :], 0.0), 1)
    local = id - first
    here = (column < count) & (local >= 0) & (local < width)
    z = _scaled(tl.load(raw + row * width + local, mask=here, other=0.0), scale, temperature, softcap, CAPPED)
    grad = _to_raw(sums - every * tl.exp(z - lse), z, scale, temperature, softcap, CAPPED)
    tl.store(out + row * width + local, grad, mask=here)


class FusedSums:
    """Running sums over the tiles of n positions, as `output_layer` keeps them without a kernel."""

    def __init__(self, ids: Tensor, dtype: torch.dtype) -> None:
        zeros = torch.zeros(len(ids), dtype=dtype, device=ids.device)
        self.ids = ids.contiguous()
        self.peak, self.mass, self.moment = zeros + torch.finfo(dtype).min, zeros.clone(), zeros.clone()
        self.chosen = zeros[:, None].repeat(1, ids.shape[1])

    def add(self, raw: Tensor, first: int, head: Any) -> None:
        """Add the next tile's products (n, v), whose first column is `first` in the vocabulary."""
        states = (self.chosen, self.peak, self.mass, self.moment)
        _launch(_scan, raw, self.ids, *states, first=first, head=head)

    def result(self) -> tuple[Tensor, ...]:
        """Return log-probabilities (n, C) at the ids, entropy (n,) and logsumexp (n,), in nats."""
        logsumexp = self.peak + self.mass.log()
        return self.chosen - logsumexp[:, None], logsumexp - self.moment / self.mass, logsumexp


def fused_gradient(
    raw: Tensor, ids: Tensor, above: Tensor, logsumexp: Tensor, first: int, head: Any, dtype: torch.dtype
) -> Tensor:
    """Return the gradient (n, v) at the products, in `dtype`, from the gradient `above` (n, C) at the log-probabilities."""
    out = torch.empty(raw.shape, dtype=dtype, device=raw.device)
    above = above.to(raw.dtype).contiguous()
    _launch(_gradient, raw, ids.contiguous(), above, above.sum(-1), logsumexp.contiguous(), out, first=first, head=head)
    return out


def _launch(kernel: Any, raw: Tensor, ids: Tensor, *states: Tensor, first: int, head: Any) -> None:
    if not len(raw):
        return
    count = ids.shape[1]
    kernel[(len(raw),)](
        raw.contiguous(), ids, *states, raw.shape[1], first, count, head.scale, head.temperature, head.softcap or 1.0,
        CAPPED=head.softcap is not None, COLUMNS=max(2, triton.next_power_of_2(count)), BLOCK=BLOCK,
    )  # fmt: skip
