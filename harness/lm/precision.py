"""bfloat16 autocast of forward passes, the attention implementation that suits it, and TF32."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch

SHORT_CONTEXT = 256


def autocast(device: torch.device | str, dtype: Literal["bfloat16"] | None) -> torch.autocast:
    """Return a context in which forward passes run in `dtype`; None keeps the weights' own precision."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype is not None)


def suit_attention(model: Any, dtype: Literal["bfloat16"] | None) -> None:
    """Choose the faster attention for a model whose forward passes run under autocast.

    On a CPU, fused attention in bfloat16 costs more than all matrix products of short sequences together. On other devices
    the model keeps its own attention.
    """
    short = model.config.get_text_config().max_position_embeddings <= SHORT_CONTEXT
    if short and model.device.type == "cpu":
        model.set_attn_implementation("sdpa" if dtype is None else "eager")


@contextmanager
def tf32(allowed: bool) -> Generator[None]:
    """Let a GPU compute float32 matrix products in TF32 in this block, or forbid it; a CPU knows no TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
