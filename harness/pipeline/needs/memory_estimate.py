"""Estimate what a stage needs before anything is loaded: memory by part, tokens, floating point operations, disk.

These are formulas; the doctor's probe measures. Memory is that of tensors; on a CPU, the process's libraries come on top.
Sources: Adam's states and float32 master weights, Rajbhandari et al. 2020 (arXiv 1910.02054), section 3; activations of a
layer, Korthikanti et al. 2022 (arXiv 2205.05198), without the attention matrix, which no kernel here stores; operations,
Kaplan et al. 2020 (arXiv 2001.08361): 2 per parameter and token in the forward pass, 4 in the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from harness.adapter import Requirements
from harness.config.models import Architecture, Model, Pretrained, Scratch
from harness.config.training import Training
from harness.lm.checkpoints import OWN_CODE, stored_parameters
from harness.lm.tiles import LARGE_TILE, TILES

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Elements that a layer keeps of one token for the backward pass: input and output of two norms, the residual stream, inputs
# and output of attention, and the three wide vectors of the gated feed-forward with their activation.
OF_HIDDEN, OF_QUERIES, OF_KEYS, OF_WIDE = 8, 3, 4, 4


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model that memory and work depend on.

    `wide` is the width of the feed-forward layer, `queries` and `keys` are the widths over all heads.
    """

    parameters: int
    vocabulary: int
    hidden: int
    layers: int
    wide: int
    queries: int
    keys: int


@dataclass(frozen=True)
class StageNeeds:
    """What one stage needs: `memory` in bytes by part, `peak` bytes at one time, generated `tokens`, and `flops`."""

    memory: Mapping[str, int]
    peak: int
    tokens: int
    flops: float


def shape_of(spec: Model) -> ModelShape | None:
    """Return a model's shape from its recipe or its config.json; None for a model that is not on this machine."""
    if isinstance(spec, Scratch):
        return _recipe_shape(spec.architecture, spec.tokenizer.vocab_size)
    file = config_file(spec)
    if file is None:
        return None
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(file.parent, **OWN_CODE)
    return _shape(config, stored_parameters(file.parent) or _counted_parameters(config))


def config_file(spec: Pretrained) -> Path | None:
    """Return the path of a pretrained model's config.json in its folder or the hub's cache; None where neither has it."""
    if Path(spec.path).is_dir():
        file = Path(spec.path) / "config.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def stage_needs(
    training: Training,
    needs: Requirements,
    student: ModelShape,
    teacher: ModelShape | None = None,
    *,
    prompt: int,
    trains: bool = True,
    teacher_dtype: str = "float32",
    device: str = "cpu",
    processes: int = 1,
    generates: bool = True,
) -> StageNeeds:
    """Return what a stage needs at most; memory is that of each of `processes`.

    `prompt` is the length of the longest prompt in tokens, `teacher` a teacher that these processes load, `trains` whether
    the stage updates weights, `generates` whether these processes draw the rollouts, rather than another engine.
    """
    sequences = training.prompts_per_step * training.num_generations
    length = prompt + training.max_new_tokens
    own = -(-sequences // processes)
    micro, batch = min(-(-(training.micro_batch or sequences) // processes), own), min(training.generation_batch, own)
    positions = micro * length
    if training.tokens_per_batch is not None:  # a longer sequence is a micro-batch of its own
        positions = min(positions, max(training.tokens_per_batch, length))
    masters = training.precision == "bfloat16_master"
    narrow = 2 if training.autocast or masters else 4
    rows, columns = TILES.get(device.partition(":")[0], LARGE_TILE)
    teacher_size = 0 if teacher is None or needs.teacher == "none" else teacher.parameters
    size = student.parameters
    weights = 4 * size // processes + (2 * size if training.autocast or (masters and processes == 1) else 0)
    # Each process gathers the other processes' shards: layer by layer to train, all of them to generate.
    whole = 0 if processes == 1 else (2 if masters else 4) * size
    parts = {
        "weights": weights,
        "gradients": 4 * size // processes,
        "optimiser": 8 * size // processes,
        "reference": 4 * size if needs.reference else 0,
        "teacher": BYTES[teacher_dtype] * teacher_size,
        "activations": positions * narrow * _kept_by_token(student, training.activation_checkpointing),
        "logits": 3 * 4 * min(rows, positions) * min(columns, student.vocabulary),
        "whole weights to generate": whole,
        "key-value cache": (2 if masters else 4) * batch * length * student.layers * 2 * student.keys,
        "sampling": 3 * 4 * batch * student.vocabulary,
    }
    if not generates:
        parts |= {"key-value cache": 0, "sampling": 0}
    if not trains:
        parts = {name: size if name == "weights" else 0 for name, size in parts.items()}
    held = sum(parts[name] for name in ("weights", "gradients", "optimiser", "reference", "teacher"))
    generating = parts["whole weights to generate"] + parts["key-value cache"] + parts["sampling"]
    training_pass = parts["activations"] + parts["logits"] + 2 * parts["whole weights to generate"] // student.layers
    # Before a stage, each process holds the whole student once, in float32, and splits it.
    splitting = 0 if processes == 1 else 4 * size + weights + parts["reference"] + parts["teacher"]
    # After it, each gathers the whole student next to all that it holds.
    gathering = 0 if processes == 1 else held + 4 * size
    peak = max(held + max(training_pass, generating), splitting, gathering)
    answered = training.steps * sequences * training.max_new_tokens
    read = training.steps * sequences * length
    again = 2.0 if training.activation_checkpointing else 0.0  # one more forward pass
    flops = (6.0 + again) * student.parameters * read + 2.0 * student.parameters * answered + 2.0 * teacher_size * read
    return StageNeeds(parts, peak, answered if trains else 0, flops if trains else 0.0)


def checkpoint_bytes(student: ModelShape) -> int:
    """Return the bytes of a stage's checkpoint in float32."""
    return 4 * student.parameters


def elements_of_layer(shape: ModelShape) -> int:
    """Return how many elements of one token a layer computes and a backward pass needs."""
    return OF_HIDDEN * shape.hidden + OF_QUERIES * shape.queries + OF_KEYS * shape.keys + OF_WIDE * shape.wide


def _kept_by_token(shape: ModelShape, checkpointing: bool) -> int:
    """Return how many elements one token keeps for the backward pass.

    With checkpointing these are the inputs of all layers, and the elements of the one layer that is recomputed.
    """
    layer = elements_of_layer(shape)
    return (shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer) + 2 * shape.hidden


def _recipe_shape(shape: Architecture, vocabulary: int) -> ModelShape:
    """Return the shape of a Qwen3 model that is built from a recipe; its norms of queries and keys have a head's width."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * queries * shape.hidden_size + 2 * keys * shape.hidden_size + 2 * shape.head_dim
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size
    tables = (1 if shape.tie_embeddings else 2) * vocabulary * shape.hidden_size
    parameters = tables + shape.layers * layer + shape.hidden_size
    return ModelShape(parameters, vocabulary, shape.hidden_size, shape.layers, shape.intermediate_size, queries, keys)


def _counted_parameters(config: Any) -> int:
    """Return the number of parameters of a configuration, counted on a model without storage."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = cast(Any, AutoModelForCausalLM).from_config(config, **OWN_CODE)
    return sum(parameter.numel() for parameter in model.parameters())


def _shape(config: Any, parameters: int) -> ModelShape:
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    return ModelShape(
        parameters=parameters,
        vocabulary=int(text.vocab_size),
        hidden=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        wide=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        queries=heads * width,
        keys=kv_heads * width,
    )
