# pyright: standard
# triton has no types.
"""How kernels turn products of the output layer into logits and back, and how a kernel is launched.

Scale, softcap and temperature are compile-time constants, because arguments would be rounded to float32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def scaled(raw, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr):
    """Return logits from products: softcap(scale * raw) / temperature."""
    if SOFTCAP > 0:
        # tanh(x) = 2 sigmoid(2x) - 1
        return (2 / (1 + tl.exp(raw * (-2 * SCALE / SOFTCAP))) - 1) * (SOFTCAP / TEMPERATURE)
    return raw * (SCALE / TEMPERATURE)


@triton.jit
def to_raw(grad, logits, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr):
    """Return the gradient at the products from the gradient at the logits."""
    if SOFTCAP > 0:
        share = logits * (TEMPERATURE / SOFTCAP)
        return grad * (1 - share * share) * (SCALE / TEMPERATURE)
    return grad * (SCALE / TEMPERATURE)


def constants(head: Any, prefix: str = "") -> dict[str, float]:
    """Return a head's constants by the names of the kernels' arguments; 0 means no softcap."""
    values = {"SCALE": float(head.scale), "SOFTCAP": float(head.softcap or 0.0), "TEMPERATURE": float(head.temperature)}
    return {prefix + name: value for name, value in values.items()}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel's programs on a grid."""
    kernel[grid](*arguments, **constants)
