"""Checkpoints: a model with its renderer, read from and written to a folder, known by a digest of its weights.

transformers' Auto classes take seconds to import, so they are imported where a checkpoint is read.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from harness.config.base import digest
from harness.config.models import Model
from harness.errors import ModelError
from harness.lm.chat import Renderer

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
# Of a config.json: where it came from, and what the harness decides itself.
NOT_COMPUTED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its tokenizer's renderer."""

    model: Any
    renderer: Renderer


def context_of(folder: Path) -> int:
    """Return the longest sequence, in tokens, that a checkpoint's model takes."""
    from transformers import AutoConfig

    with _readable(folder):
        return int(AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings)


def vocabulary_of(folder: Path) -> int:
    """Return the rows of a checkpoint's output layer."""
    from transformers import AutoConfig

    with _readable(folder):
        return int(AutoConfig.from_pretrained(folder).get_text_config().vocab_size)


def load_renderer(folder: Path, spec: Model) -> Renderer:
    """Load a checkpoint's tokenizer alone."""
    from transformers import AutoTokenizer

    with _readable(folder):
        return Renderer(AutoTokenizer.from_pretrained(folder), spec.chat)


def load(folder: Path, spec: Model, device: str) -> Loaded:
    """Load a checkpoint folder with the dtype and chat settings of `spec`."""
    from transformers import AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with _readable(folder):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, spec.dtype))
    return Loaded(model.to(device), load_renderer(folder, spec))


def save(loaded: Loaded, folder: Path) -> None:
    """Write weights, tokenizer and template, so that any tool that reads the folder stops where training stopped."""
    loaded.model.generation_config.eos_token_id = list(loaded.renderer.stop_ids)
    loaded.model.generation_config.pad_token_id = loaded.renderer.tokenizer.pad_token_id
    loaded.model.save_pretrained(folder)
    loaded.renderer.tokenizer.save_pretrained(folder)


def weights_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits of all weights by name, dtype, shape and bytes, however they are sharded."""
    files = next((found for pattern in WEIGHT_FILES if (found := sorted(folder.glob(pattern)))), None)
    if files is None:
        raise ModelError(f"{folder} holds no weights ({' or '.join(WEIGHT_FILES)})")
    if any(path.suffix == ".bin" for path in files):
        return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()[:16]
    tensors = sorted(line for path in files for line in _tensor_digests(path))
    return hashlib.sha256("\n".join(tensors).encode()).hexdigest()[:16]


def config_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits of what a checkpoint's model computes with its weights: rotary base, norms, tied layers.

    The file is read as transformers reads it, so that an older writer's names for the same settings change nothing.
    """
    from transformers import AutoConfig

    with _readable(folder):
        return digest(_computed(AutoConfig.from_pretrained(folder).to_dict()))


@contextmanager
def _readable(folder: Path) -> Generator[None]:
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: not a causal language model with a tokenizer ({error})") from error


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {str(name): value for name, value in config.items() if name not in NOT_COMPUTED}
    return {name: _computed(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _tensor_digests(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as tensors:
        return [_tensor_digest(name, tensors.get_tensor(name)) for name in tensors.keys()]  # noqa: SIM118


def _tensor_digest(name: str, tensor: torch.Tensor) -> str:
    content = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content.tobytes()).hexdigest()}"
