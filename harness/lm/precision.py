"""bfloat16 autocast of forward passes, and the attention that goes with it."""

from __future__ import annotations

from typing import Any, Literal

import torch

SHORT_CONTEXT = 256


def autocast(device: torch.device | str, dtype: Literal["bfloat16"] | None) -> torch.autocast:
    """Return the context in which a forward pass runs in `dtype`; null leaves the weights' own precision."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype is not None)


def suit_attention(model: Any, dtype: Literal["bfloat16"] | None) -> None:
    """Choose the faster attention of a model whose forward passes run under autocast.

    On a CPU, fused attention in bfloat16 costs more than all matrix products of short sequences together; elsewhere the
    model's own attention stays.
    """
    short = model.config.get_text_config().max_position_embeddings <= SHORT_CONTEXT
    if short and model.device.type == "cpu":
        model.set_attn_implementation("sdpa" if dtype is None else "eager")
