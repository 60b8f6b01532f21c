"""Checkpoints: a model with its renderer, read from and written to a folder, identified by a digest of its weights.

A folder is refused with a `ModelError` that names it if it cannot be read, if its tensors are not exactly those of its
configuration, or if loading it would run Python code in it. transformers' Auto classes take seconds to import, so they are
imported where a checkpoint is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from harness.config.base import digest
from harness.config.models import Chat, Model
from harness.errors import HarnessError, ModelError
from harness.lm.chat import Renderer

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_AND_CONFIG_FILES = (
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)
# Keys of a config.json that do not change what the model computes, or that the harness sets itself.
NOT_COMPUTED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
# Passed to everything that reads a folder: without it, transformers asks at a terminal whether to run the folder's code.
OWN_CODE = {"trust_remote_code": False}


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its tokenizer's renderer."""

    model: Any
    renderer: Renderer


def allow_own_code(allowed: bool) -> None:
    """Set whether this process may run Python code from checkpoint folders: a suite's `trust_remote_code`."""
    OWN_CODE["trust_remote_code"] = allowed


def context_of(folder: Path) -> int:
    """Return a checkpoint's longest sequence in tokens; raises `ModelError` if its config.json names none."""
    config = _config(folder).get_text_config()
    for name in ("max_position_embeddings", "context_length", "max_seq_len"):
        if isinstance(length := getattr(config, name, None), int):
            return length
    raise ModelError(f"{folder / 'config.json'}: found no max_position_embeddings; add the longest sequence in tokens")


def vocabulary_of(folder: Path) -> int:
    """Return the number of rows of a checkpoint's output layer, as its config.json has it."""
    return int(_config(folder).get_text_config().vocab_size)


def load_renderer(folder: Path, spec: Model) -> Renderer:
    """Load only a checkpoint's tokenizer, with the chat settings of `spec`."""
    return read_renderer(folder, spec.chat)


def read_renderer(folder: Path, chat: Chat, tokenizer: Any = None) -> Renderer:
    """Return a checkpoint's renderer; `tokenizer` is its tokenizer if it was loaded already.

    Without `chat.stop`, the stop tokens in the checkpoint's generation_config.json are used too.
    """
    from transformers import AutoTokenizer

    with _readable(folder):
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(folder, **OWN_CODE)
        return Renderer(tokenizer, chat, eos_of(folder))


def eos_of(folder: Path) -> tuple[int, ...]:
    """Return the ids that end an answer according to a checkpoint's generation_config.json; empty without that file."""
    if not (folder / "generation_config.json").is_file():
        return ()
    from transformers import GenerationConfig

    with _readable(folder):
        found: Any = GenerationConfig.from_pretrained(folder).eos_token_id
    return tuple(found) if isinstance(found, list) else () if found is None else (int(found),)


def load_checkpoint(folder: Path, spec: Model, device: str) -> Loaded:
    """Load a checkpoint folder with the dtype and chat settings of `spec`."""
    model = load_model(folder, getattr(torch, spec.dtype))
    return Loaded(model.to(device), load_renderer(folder, spec))


def load_model(folder: Path, dtype: torch.dtype | str) -> Any:
    """Load a causal language model; raises `ModelError` for tensors that are missing, unexpected or of the wrong shape."""
    return _load_model(folder, dtype=dtype)


def check_weights(folder: Path) -> None:
    """Raise `ModelError` as `load_model` does, without reading the tensors' values."""
    _load_model(folder, device_map="meta")


def unfit_tensor(info: Mapping[str, Any]) -> str | None:
    """Return the first problem in transformers' loading report, such as `model.norm.weight is missing`; None if all fits."""
    for what in ("missing", "unexpected", "mismatched"):
        for entry in sorted(info[f"{what}_keys"], key=str):
            name = entry if isinstance(entry, str) else f"{entry[0]} of shape {list(entry[1])}"
            return f"{name} is {what}"
    return None


def save_checkpoint(loaded: Loaded, folder: Path) -> None:
    """Write weights, tokenizer and template, with the renderer's stop tokens, so that other tools end answers there too."""
    loaded.model.generation_config.eos_token_id = list(loaded.renderer.stop_ids)
    loaded.model.generation_config.pad_token_id = loaded.renderer.tokenizer.pad_token_id
    save_model(loaded.model, folder)
    loaded.renderer.tokenizer.save_pretrained(folder)


def save_model(model: Any, folder: Path, **kwargs: Any) -> None:
    """Write a model as `save_pretrained` does, and its generation configuration unchanged.

    transformers loads a generation_config.json that sets temperature without do_sample, but refuses to save it.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    try:
        model.generation_config = GenerationConfig()
        model.save_pretrained(folder, **kwargs)
    finally:
        model.generation_config = own
    if own is not None:
        own.to_json_file(folder / "generation_config.json")


def weights_digest(folder: Path) -> str:
    """Return a digest of all weights: 16 hexadecimal digits over names, dtypes, shapes and bytes.

    It does not depend on how safetensors files are split; of `.bin` files it takes the bytes as they are. A process reads a
    file again only if its size, modification time or inode has changed. Raises `ModelError` for a folder without weights.
    """
    files = next((files for pattern in WEIGHT_FILES if (files := sorted(folder.glob(pattern)))), [])
    if not files:
        raise ModelError(f"{folder} has no weights, expected {' or '.join(WEIGHT_FILES)}")
    states = [(path.resolve(), path.stat()) for path in files]
    return _digest_files(folder, tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in states))


@lru_cache(maxsize=1024)
def _digest_files(folder: Path, states: tuple[tuple[Path, int, int, int], ...]) -> str:
    files = [path for path, *_ in states]
    if any(path.suffix == ".bin" for path in files):
        return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()[:16]
    with _readable(folder):
        tensors = sorted(line for path in files for line in _tensor_digests(path))
    return hashlib.sha256("\n".join(tensors).encode()).hexdigest()[:16]


def files_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits over the bytes of a checkpoint's configuration and tokenizer files."""
    present = [folder / name for name in TOKENIZER_AND_CONFIG_FILES if (folder / name).is_file()]
    return digest([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in present])


def checkpoint_digests(folder: Path) -> dict[str, str]:
    """Return `weights_digest` and `files_digest` by the names that messages give them."""
    return {"weights": weights_digest(folder), "configuration and tokenizer": files_digest(folder)}


def config_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits over the settings that decide what a model computes: rotary base, norms, tied layers.

    transformers reads the config.json, so older names of the same settings give the same digest.
    """
    return digest(computed_config(folder))


def computed_config(folder: Path) -> dict[str, Any]:
    """Return those settings, as transformers reads them."""
    return _computed(_config(folder).to_dict())


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    with _readable(folder):
        return AutoConfig.from_pretrained(folder, **OWN_CODE)


def _load_model(folder: Path, **how: Any) -> Any:
    from transformers import AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with _readable(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **OWN_CODE, **how
        )
    model, info = loaded
    if (unfit := unfit_tensor(info)) is not None:
        raise ModelError(
            f"{folder}: its weights do not fit its config.json: {unfit}; save the model again with save_pretrained, "
            "adapters merged and shards gathered"
        )
    return model


@contextmanager
def _readable(folder: Path) -> Generator[None]:
    """Turn any error of the libraries that read a folder into a `ModelError`; they raise many kinds for damaged files."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"{_damaged(folder) or folder}: not a causal language model with a tokenizer ({reason})"
        ) from error


def _damaged(folder: Path) -> Path | None:
    """Return the first JSON or safetensors file of a folder that cannot be parsed; None if there is none."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return path
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return path
    return None


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, at all depths, without the keys in NOT_COMPUTED."""
    kept = {str(name): value for name, value in config.items() if name not in NOT_COMPUTED}
    return {name: _computed(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _tensor_digests(path: Path) -> Iterator[str]:
    """Yield a line for each tensor of a safetensors file: its name, dtype, shape and the digest of its bytes."""
    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(name)
            content = tensor.contiguous().flatten().view(torch.uint8).numpy()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content.tobytes()).hexdigest()}"


def stored_parameters(folder: Path) -> int:
    """Return how many parameters a folder's safetensors hold, from their headers; 0 where it has no such files."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count
