# pyright: standard, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# triton has no types.
"""Kernels for log-probabilities of chosen tokens: one program per row of a tile of products, which it reads once.

In the forward pass it updates the running sums of the log-softmax, picks the chosen ids, and sums held ids separately from
the rest. In the backward pass it writes the gradient in the dtype of the matrix products that follow.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.lm.kernels.scaling import constants, launch, scaled, to_raw

BLOCK = 1024
# Columns in a group whose maximum is stored. The K largest logits are in the K groups with the largest maxima.
GROUP = 64


@triton.jit
def _first_of_equals(id, COLUMNS: tl.constexpr):
    """Return which ids of a row are the first of their value in it."""
    column = tl.arange(0, COLUMNS)
    before = (id[:, None] == id[None, :]) & (column[None, :] < column[:, None])
    return tl.sum(tl.where(before, 1, 0), 1) == 0


@triton.jit
def _scan(
    raw, ids, held, chosen, peak, mass, moment, held_peak, held_mass, held_moment, maxima,
    width, first, count, held_count, groups,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr,
    COLUMNS: tl.constexpr, HELD: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    local = tl.load(ids + row * count + column, mask=column < count, other=-1) - first
    here = (column < count) & (local >= 0) & (local < width)
    at_ids = scaled(tl.load(raw + row * width + local, mask=here, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
    tl.store(chosen + row * count + column, at_ids, mask=here)
    if HELD > 0:
        # Held columns are removed from the tile, so the sums below are of the rest alone and nothing cancels.
        slot = tl.arange(0, HELD)
        id = tl.load(held + row * held_count + slot, mask=slot < held_count, other=-1)
        spot = id - first
        ours = (slot < held_count) & (spot >= 0) & (spot < width)
        apart = scaled(tl.load(raw + row * width + spot, mask=ours, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
        apart = tl.where(ours & _first_of_equals(id, HELD), apart, -float("inf"))
        before = tl.load(held_peak + row)
        high = tl.maximum(before, tl.max(apart, 0))
        share, less = tl.exp(apart - high), tl.exp(before - high)
        tl.store(held_peak + row, high)
        tl.store(held_mass + row, tl.load(held_mass + row) * less + tl.sum(share, 0))
        more = tl.sum(tl.where(share > 0, share * apart, 0.0), 0)
        tl.store(held_moment + row, tl.load(held_moment + row) * less + more)
        tl.debug_barrier()
        tl.store(raw + row * width + spot, tl.full((HELD,), -float("inf"), apart.dtype), mask=ours)
        tl.debug_barrier()
    m, s, t = tl.load(peak + row), tl.load(mass + row), tl.load(moment + row)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < width
        value = tl.load(raw + row * width + place, mask=inside, other=0.0)
        z = scaled(value, SCALE, SOFTCAP, TEMPERATURE)
        if HELD > 0:
            # A held column is -inf now, which a softcap would make finite.
            inside = inside & (value != -float("inf"))
        z = tl.where(inside, z, -float("inf"))
        if GROUP > 0:
            largest = tl.max(tl.reshape(z, (BLOCK // GROUP, GROUP)), 1)
            group = start // GROUP + tl.arange(0, BLOCK // GROUP)
            tl.store(maxima + row * groups + group, largest, mask=group < groups)
        top = tl.maximum(m, tl.max(z, 0))
        part, kept = tl.exp(z - top), tl.exp(m - top)
        s = s * kept + tl.sum(part, 0)
        # A logit of -inf adds nothing to the entropy, but 0 * -inf would be nan.
        t = t * kept + tl.sum(tl.where(part > 0, part * z, 0.0), 0)
        m = top
    tl.store(peak + row, m)
    tl.store(mass + row, s)
    tl.store(moment + row, t)


@triton.jit
def _gradient(
    raw, ids, held, above, above_rest, total, logsumexp, log_rest, out,
    width, first, count, held_count,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr,
    COLUMNS: tl.constexpr, HELD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lse, every = tl.load(logsumexp + row), tl.load(total + row)
    if HELD > 0:
        own_rest, lse_rest = tl.load(above_rest + row), tl.load(log_rest + row)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < width
        z = scaled(tl.load(raw + row * width + place, mask=inside, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
        grad = -every * tl.exp(z - lse)
        if HELD > 0:
            grad += own_rest * tl.exp(z - lse_rest)
        tl.store(out + row * width + place, to_raw(grad, z, SCALE, SOFTCAP, TEMPERATURE), mask=inside)
    # Held columns are overwritten without the rest's part, then chosen columns with their own gradient.
    if HELD > 0:
        tl.debug_barrier()
        slot = tl.arange(0, HELD)
        kept = tl.load(held + row * held_count + slot, mask=slot < held_count, other=-1)
        spot = kept - first
        ours = (slot < held_count) & (spot >= 0) & (spot < width)
        apart = scaled(tl.load(raw + row * width + spot, mask=ours, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
        of_held = to_raw(-every * tl.exp(apart - lse), apart, SCALE, SOFTCAP, TEMPERATURE)
        tl.store(out + row * width + spot, of_held, mask=ours)
    tl.debug_barrier()
    column = tl.arange(0, COLUMNS)
    id = tl.load(ids + row * count + column, mask=column < count, other=-1)
    own = tl.load(above + row * count + column, mask=column < count, other=0.0)
    # An id that is chosen twice has the sum of both.
    sums = tl.sum(tl.where(id[:, None] == id[None, :], own[None, :], 0.0), 1)
    local = id - first
    here = (column < count) & (local >= 0) & (local < width)
    at_ids = scaled(tl.load(raw + row * width + local, mask=here, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
    at_chosen = sums - every * tl.exp(at_ids - lse)
    if HELD > 0:
        among = tl.sum(tl.where(id[:, None] == kept[None, :], 1, 0), 1) > 0
        at_chosen += tl.where(among, 0.0, own_rest * tl.exp(at_ids - lse_rest))
    tl.store(out + row * width + local, to_raw(at_chosen, at_ids, SCALE, SOFTCAP, TEMPERATURE), mask=here)


class RunningSums:
    """Running sums over the tiles of n positions, like those of `output_layer` without kernels.

    With `held` (n, K) there are two sets of sums: of the held ids, and of the rest.
    """

    def __init__(self, ids: Tensor, dtype: torch.dtype, held: Tensor | None = None) -> None:
        zeros = torch.zeros(len(ids), dtype=dtype, device=ids.device)
        self.ids, self.held = ids.contiguous(), None if held is None else held.contiguous()
        lowest = zeros + torch.finfo(dtype).min
        self.sums, self.held_sums = ([lowest.clone(), zeros.clone(), zeros.clone()] for _ in range(2))
        self.chosen = zeros[:, None].repeat(1, ids.shape[1])

    def add(self, raw: Tensor, first: int, head: Any, maxima: Tensor | None = None) -> None:
        """Add the next tile's products (n, v), whose first column is `first` in the vocabulary; held columns are overwritten.

        `maxima` (n, groups of the tile) takes the largest logit of each group of columns.
        """
        if not len(raw):
            return
        held = self.ids if self.held is None else self.held
        launch(
            _scan, (len(raw),), raw, self.ids, held, self.chosen, *self.sums, *self.held_sums,
            raw if maxima is None else maxima,
            raw.shape[1], first, self.ids.shape[1], held.shape[1], 0 if maxima is None else maxima.shape[1],
            **constants(head), COLUMNS=_power(self.ids), HELD=0 if self.held is None else _power(held),
            GROUP=0 if maxima is None else GROUP, BLOCK=BLOCK,
        )  # fmt: skip

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-probabilities (n, C) at the ids, entropy, logsumexp and the rest's log-probability (n,), in nats."""
        (peak, mass, moment), (held_peak, held_mass, held_moment) = self.sums, self.held_sums
        of_rest = peak + mass.log()
        if self.held is not None:
            top = torch.maximum(peak, held_peak)
            kept, also = torch.exp(peak - top), torch.exp(held_peak - top)
            peak, mass, moment = top, mass * kept + held_mass * also, moment * kept + held_moment * also
        logsumexp = peak + mass.log()
        return self.chosen - logsumexp[:, None], logsumexp - moment / mass, logsumexp, of_rest - logsumexp


def selected_gradient(
    raw: Tensor, first: int, head: Any, ids: Tensor, above: Tensor, logsumexp: Tensor, dtype: torch.dtype,
    rest: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Return the gradient (n, v) at a tile's products, in `dtype`, from the gradient `above` (n, C) at the log-probabilities.

    `rest` is the held ids (n, K), the gradient (n,) at the log-probability of all other tokens, and this log-probability (n,).
    """
    out = torch.empty(raw.shape, dtype=dtype, device=raw.device)
    if not len(raw):
        return out
    above, logsumexp = above.to(raw.dtype).contiguous(), logsumexp.contiguous()
    total, held, own, of_rest = above.sum(-1), ids, logsumexp, logsumexp
    if rest is not None:
        held, own = rest[0].contiguous(), rest[1].to(raw.dtype).contiguous()
        total = total + own
        of_rest = (rest[2] + logsumexp).clamp(min=torch.finfo(raw.dtype).min).contiguous()
    launch(
        _gradient, (len(raw),), raw, ids.contiguous(), held, above, own, total, logsumexp, of_rest, out,
        raw.shape[1], first, ids.shape[1], held.shape[1],
        **constants(head), COLUMNS=_power(ids), HELD=0 if rest is None else _power(held), BLOCK=BLOCK,
    )  # fmt: skip
    return out


def largest(raw: Tensor, maxima: Tensor, head: Any, k: int) -> tuple[Tensor, Tensor]:
    """Return the K largest logits (n, K) and their columns, from products (n, V) and the maxima (n, groups) of their groups.

    The K largest logits are in the K groups with the largest maxima, so only these groups are searched.
    """
    groups = maxima.topk(min(k, maxima.shape[1]), dim=-1).indices
    columns = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=raw.device)).flatten(1)
    outside = columns >= raw.shape[1]
    found = raw.gather(-1, columns.clamp(max=raw.shape[1] - 1))
    if head.softcap is not None:
        found = torch.tanh(found * (head.scale / head.softcap)) * (head.softcap / head.temperature)
    else:
        found = found * head.factor
    top, order = found.masked_fill(outside, -torch.inf).topk(k, dim=-1)
    return top, columns.gather(-1, order)


def _power(ids: Tensor) -> int:
    return max(2, triton.next_power_of_2(ids.shape[1]))
