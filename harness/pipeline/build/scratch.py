"""Build small models from scratch: a Qwen3 architecture, a BPE tokenizer, and a supervised warm-up.

A built model is a checkpoint folder like one from the hub. It is cached under a hash of its recipe, which covers the
settings, the seed, the training texts and the library versions.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.config.base import digest
from harness.config.models import Architecture, Scratch
from harness.config.training import Optimizer
from harness.errors import ConfigError
from harness.lm.chat import Renderer
from harness.lm.checkpoints import Loaded, save_checkpoint
from harness.lm.logprobs import StudentForward
from harness.lm.optimiser import Updater
from harness.lm.precision import autocast, suit_attention
from harness.lm.rollouts import Batch, Example, Rollout, make_batches
from harness.lm.seeding import derive_seed
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Text
from harness.pipeline.build.scratch_tokenizer import train_tokenizer, training_texts
from harness.rundir.files import sync_tree
from harness.rundir.locks import waiting_lock

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

Progress = Callable[[str, int, int], None]


def cache_folder() -> Path:
    """Return the folder of built models: `$HARNESS_CACHE`, else `~/.cache/continual-harness`."""
    if named := os.environ.get("HARNESS_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "continual-harness"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder for built models; set HARNESS_CACHE to a folder") from error


def ensure_built(spec: Scratch, seed: int, library: TaskLibrary, progress: Progress, device: str = "cpu") -> Path:
    """Return the folder of the model that `spec` and `seed` describe, built once for all processes of the machine.

    A GPU and a CPU sum in different orders and so build different models, which have different names.
    """
    texts = training_texts(spec, library)
    folder = folder_of(spec, seed, texts, device)
    if folder.is_dir():  # without the lock, whose file may belong to another user of a shared cache
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder.parent}, the folder of built models, cannot be made ({error.strerror}); set HARNESS_CACHE to another one"
        ) from error
    with waiting_lock(Path(f"{folder}.lock")):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
            try:
                _build(spec, seed, library, texts, partial, progress, device)
                partial.chmod(0o755)  # a temporary folder is closed to other users
                sync_tree(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def folder_of(spec: Scratch, seed: int, texts: dict[str, list[Text]], device: str = "cpu") -> Path:
    """Return the folder of a built model, which may not be there yet; `texts` are the training texts by task."""
    return cache_folder() / "models" / f"{spec.strength}-{recipe_key(spec, seed, texts, device)}"


def recipe_key(spec: Scratch, seed: int, texts: dict[str, list[Text]], device: str = "cpu") -> str:
    """Return the hash that names a built model; `texts` are the training texts by task."""
    recipe = spec.model_dump(mode="json", exclude={"seed": True, "strength": True, "warmup": {"strengths"}})
    strength = spec.warmup.strengths[spec.strength].model_dump()
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    parts = {"recipe": recipe, "strength": strength, "seed": seed, "texts": digest(texts), "versions": versions}
    if spec.chat.template is not None and (template := Path(spec.chat.template)).is_file():
        parts["template"] = digest(template.read_text(encoding="utf-8"))
    kind = device.partition(":")[0]
    return digest(parts if kind == "cpu" else {**parts, "device": kind})


def _build(
    spec: Scratch,
    seed: int,
    library: TaskLibrary,
    texts: dict[str, list[Text]],
    folder: Path,
    progress: Progress,
    device: str,
) -> None:
    renderer = Renderer(train_tokenizer(spec, texts), spec.chat)
    model: Any = _random_model(spec.architecture, len(renderer.tokenizer), derive_seed(seed, "weights"))
    limits = spec.warmup.strengths[spec.strength].items
    examples = {name: library.load(name).training_examples(renderer, limits.get(name)) for name in spec.warmup.mixture}
    _warm_up(model.to(device), spec, examples, seed, progress)
    save_checkpoint(Loaded(model.cpu(), renderer), folder)


def _random_model(shape: Architecture, vocabulary: int, seed: int) -> Qwen3ForCausalLM:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tie_embeddings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def _warm_up(
    model: Qwen3ForCausalLM, spec: Scratch, examples: dict[str, list[Example]], seed: int, progress: Progress
) -> None:
    steps = spec.warmup.strengths[spec.strength].steps
    settings = Optimizer(
        lr=spec.warmup.lr,
        weight_decay=spec.warmup.weight_decay,
        grad_clip=spec.warmup.grad_clip,
        schedule="cosine",
        warmup_steps=min(20, steps // 10),
    )
    suit_attention(model, spec.warmup.autocast)
    student = StudentForward(model.train())
    updater = Updater(student, settings, steps)
    mixtures = _mixed_batches(spec, examples, derive_seed(seed, "warm-up"))

    def loss_of(batch: Batch) -> Tensor:
        with autocast(model.device, spec.warmup.autocast):
            return -(student(batch, batch.targets[:, None]).chosen[:, 0] * batch.weights).sum()

    # Tasks differ in length, and a CPU pays for padding: two micro-batches by length take a seventh less time.
    micro_batch = spec.warmup.batch_size // 2 if model.device.type == "cpu" else None
    for step in range(steps):
        updater.update(make_batches(next(mixtures), "token_mean", micro_batch, model.device), loss_of)
        progress(f"{spec.strength} warm-up", step + 1, steps)
    model.eval()


def _mixed_batches(spec: Scratch, examples: dict[str, list[Example]], seed: int) -> Iterator[list[Rollout]]:
    """Yield batches of items, each drawn from a task with the task's share of the mixture as probability."""
    generator = np.random.default_rng(seed)
    tasks = list(spec.warmup.mixture)
    shares = np.array([spec.warmup.mixture[task] for task in tasks])
    while True:
        drawn = generator.choice(len(tasks), size=spec.warmup.batch_size, p=shares / shares.sum())
        pools = [examples[tasks[i]] for i in drawn]
        items = [pool[generator.integers(len(pool))] for pool in pools]
        yield [Rollout(item, item.target, "stop") for item in items]
