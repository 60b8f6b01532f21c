"""bfloat16 autocast of forward passes, the fastest attention under it, and TF32."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch

SHORT_CONTEXT = 256  # tokens


def autocast(device: torch.device | str, dtype: Literal["bfloat16"] | None) -> torch.autocast:
    """Return a context in which forward passes run in `dtype`; None keeps the weights' own precision."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype is not None)


def suit_attention(model: Any, dtype: Literal["bfloat16"] | None) -> None:
    """Choose the faster attention for a model whose forward passes run under autocast.

    On a CPU, fused attention in bfloat16 takes longer than all matrix products of short sequences together, so such a model
    gets eager attention. Other models keep their attention.
    """
    short = model.config.get_text_config().max_position_embeddings <= SHORT_CONTEXT
    if short and model.device.type == "cpu":
        model.set_attn_implementation("sdpa" if dtype is None else "eager")


@contextmanager
def tf32(allowed: bool) -> Generator[None]:
    """Allow or forbid TF32 for float32 matrix products of a GPU in this block; a CPU has no TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
