"""Activation checkpointing: each layer keeps only its inputs and is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.errors import ModelError


@contextmanager
def recomputed_layers(module: nn.Module, enabled: bool) -> Generator[None]:
    """Checkpoint the activations of every layer of a transformers model in this block, in training and evaluation mode.

    transformers' own switch works in training mode only, but methods without dropout train in evaluation mode. Gradients are
    bit-identical to those without checkpointing. Raises `ModelError` for a model whose layers transformers does not mark.
    """
    layers = layers_of(module) if enabled else []
    if enabled and not layers:
        raise ModelError(
            "the student has no layers that can be checkpointed; set training.activation_checkpointing: false"
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def layers_of(module: nn.Module) -> list[nn.Module]:
    """Return the repeated layers of a transformers model, which it marks for checkpointing."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
