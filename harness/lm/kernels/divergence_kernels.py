# pyright: standard
# triton has no types.
"""Kernels for the generalised Jensen-Shannon divergence of student and teacher, with the two KL divergences as its limits.

With q of the student and p of the teacher, m = beta p + (1 - beta) q and a = log q - log m, the loss of a token is
beta KL(p || m) + (1 - beta) KL(q || m), and its gradient at the student's logits is (1 - beta) q (a - sum q a). For beta 0
(forward KL) the gradient is q - p, and for beta 1 (reverse KL) it is q (log q - log p - KL).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.lm.kernels.scaling import constants, launch, scaled, to_raw

BLOCK = 1024


@triton.jit
def _log_mixture(logq, logp, LOG_BETA: tl.constexpr, LOG_OTHER: tl.constexpr):
    ours, theirs = logq + LOG_OTHER, logp + LOG_BETA
    top = tl.maximum(ours, theirs)
    # If both are -inf, -inf - -inf would be nan; the value is multiplied by 0 later.
    top = tl.where(top > -float("inf"), top, 0.0)
    return top + tl.log(tl.exp(ours - top) + tl.exp(theirs - top))


@triton.jit
def _losses(
    student, teacher, losses, inner, student_sum, teacher_sum, width,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr,
    THEIR_SCALE: tl.constexpr, THEIR_SOFTCAP: tl.constexpr, THEIR_TEMPERATURE: tl.constexpr,
    BETA: tl.constexpr, LOG_BETA: tl.constexpr, LOG_OTHER: tl.constexpr, LOWEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    zero = tl.load(losses + row)  # 0 in the dtype of the sums
    m, s, n, r = zero + LOWEST, zero, zero + LOWEST, zero
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < width
        z = scaled(tl.load(student + row * width + place, mask=inside, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
        u = tl.load(teacher + row * width + place, mask=inside, other=0.0)
        u = scaled(u, THEIR_SCALE, THEIR_SOFTCAP, THEIR_TEMPERATURE)
        z, u = tl.where(inside, z, -float("inf")), tl.where(inside, u, -float("inf"))
        top, high = tl.maximum(m, tl.max(z, 0)), tl.maximum(n, tl.max(u, 0))
        s = s * tl.exp(m - top) + tl.sum(tl.exp(z - top), 0)
        r = r * tl.exp(n - high) + tl.sum(tl.exp(u - high), 0)
        m, n = top, high
    lse, their_lse = m + tl.log(s), n + tl.log(r)
    ours, theirs = zero, zero
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < width
        z = scaled(tl.load(student + row * width + place, mask=inside, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
        u = tl.load(teacher + row * width + place, mask=inside, other=0.0)
        u = scaled(u, THEIR_SCALE, THEIR_SOFTCAP, THEIR_TEMPERATURE)
        logq, logp = tl.where(inside, z - lse, -float("inf")), tl.where(inside, u - their_lse, -float("inf"))
        q, p = tl.exp(logq), tl.exp(logp)
        if BETA == 1:
            ours += tl.sum(tl.where(q > 0, q * (logq - logp), 0.0), 0)
        elif BETA == 0:
            theirs += tl.sum(tl.where(p > 0, p * (logp - logq), 0.0), 0)
        else:
            mixture = _log_mixture(logq, logp, LOG_BETA, LOG_OTHER)
            ours += tl.sum(tl.where(q > 0, q * (logq - mixture), 0.0), 0)
            theirs += tl.sum(tl.where(p > 0, p * (logp - mixture), 0.0), 0)
    if BETA == 1:
        tl.store(losses + row, ours)
    elif BETA == 0:
        tl.store(losses + row, theirs)
    else:
        tl.store(losses + row, BETA * theirs + (1 - BETA) * ours)
    tl.store(inner + row, ours)
    tl.store(student_sum + row, lse)
    tl.store(teacher_sum + row, their_lse)


@triton.jit
def _gradient(
    student, teacher, above, inner, student_sum, teacher_sum, out, width,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr,
    THEIR_SCALE: tl.constexpr, THEIR_SOFTCAP: tl.constexpr, THEIR_TEMPERATURE: tl.constexpr,
    BETA: tl.constexpr, LOG_BETA: tl.constexpr, LOG_OTHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < width
    z = scaled(tl.load(student + row * width + place, mask=inside, other=0.0), SCALE, SOFTCAP, TEMPERATURE)
    u = tl.load(teacher + row * width + place, mask=inside, other=0.0)
    u = scaled(u, THEIR_SCALE, THEIR_SOFTCAP, THEIR_TEMPERATURE)
    logq, logp = z - tl.load(student_sum + row), u - tl.load(teacher_sum + row)
    q, p, mean = tl.exp(logq), tl.exp(logp), tl.load(inner + row)
    if BETA == 0:
        grad = q - p
    elif BETA == 1:
        grad = tl.where(q > 0, q * (logq - logp - mean), 0.0)
    else:
        grad = tl.where(q > 0, (1 - BETA) * q * (logq - _log_mixture(logq, logp, LOG_BETA, LOG_OTHER) - mean), 0.0)
    grad = tl.load(above + row) * grad
    tl.store(out + row * width + place, to_raw(grad, z, SCALE, SOFTCAP, TEMPERATURE), mask=inside)


def divergence_losses(student: Tensor, teacher: Tensor, head: Any, their_head: Any, beta: float) -> tuple[Tensor, ...]:
    """Return losses, sum q a, and the logsumexp of student and of teacher, each (n,), from their products (n, V)."""
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    found = tuple(torch.zeros(len(student), dtype=dtype, device=student.device) for _ in range(4))
    if len(student):
        lowest = torch.finfo(torch.float32).min
        launch(
            _losses, (len(student),), student, teacher, *found, student.shape[1],
            **_constants(head, their_head, beta), LOWEST=lowest, BLOCK=BLOCK,
        )  # fmt: skip
    return found


def divergence_gradient(
    student: Tensor, teacher: Tensor, head: Any, their_head: Any, beta: float,
    above: Tensor, inner: Tensor, student_sum: Tensor, teacher_sum: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return the gradient (n, v), in `dtype`, at a tile's products of the student, from that at the losses, `above` (n,)."""
    out = torch.empty(student.shape, dtype=dtype, device=student.device)
    if out.numel():
        sums = (t.contiguous() for t in (above.to(inner.dtype), inner, student_sum, teacher_sum))
        grid = len(student), triton.cdiv(student.shape[1], BLOCK)
        fixed = _constants(head, their_head, beta)
        launch(_gradient, grid, student, teacher, *sums, out, student.shape[1], **fixed, BLOCK=BLOCK)
    return out


def _constants(head: Any, their_head: Any, beta: float) -> dict[str, float]:
    logs = {"LOG_BETA": math.log(beta), "LOG_OTHER": math.log(1 - beta)} if 0 < beta < 1 else {}
    none = {"LOG_BETA": 0.0, "LOG_OTHER": 0.0}
    return {**constants(head), **constants(their_head, "THEIR_"), "BETA": float(beta), **none, **logs}
