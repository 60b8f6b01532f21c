"""A training step on models of a real shape with random weights: no checkpoint, no tokenizer, no network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from adapters.loop.training_loop import LoopAdapter
from harness.adapter import StageContext
from harness.config.training import Training
from harness.engines.hf import HFEngine
from harness.lm.logprobs import StudentForward
from harness.lm.rollouts import Example
from harness.teachers.local import LocalTeacher


@dataclass(frozen=True)
class Shape:
    """A Qwen3 architecture."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int = 151_936


@dataclass(frozen=True)
class Load:
    """What a step has to do: prompts, their tokens, and new tokens of each."""

    prompts: int
    prompt: int
    response: int


class Numbers:
    """A tokenizer of which only the vocabulary is asked for, and a renderer of which only the stop token is."""

    stop_ids = (0,)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        """Return a word for each id."""
        return {str(i): i for i in range(self.size)}


def random_model(shape: Shape, dtype: torch.dtype, device: str) -> Any:
    """Return a model with random weights, made on the device."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=max(1, shape.heads // 2),
        head_dim=128 if shape.hidden >= 1024 else 32, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(config)
    return model.to(dtype).eval()


def step_lines(
    adapter: LoopAdapter, student: Any, teacher: Any, load: Load, device: str, **training: Any
) -> list[dict[str, Any]]:
    """Train two steps and return their lines of the step log; the first is the warm-up."""
    numbers: Any = Numbers(len(student.get_output_embeddings().weight))
    draw = torch.Generator().manual_seed(0)
    examples = [
        Example("random", str(i), {}, torch.randint(1, len(numbers), (load.prompt,), generator=draw).tolist(), [1, 0])
        for i in range(load.prompts)
    ]
    lines: list[dict[str, Any]] = []
    settings = {**training, "steps": 2, "prompts_per_step": load.prompts, "max_new_tokens": load.response}
    context = StageContext(
        student=StudentForward(student),
        teacher=LocalTeacher(teacher, numbers, numbers),
        engine=HFEngine(student, numbers, load.prompts),
        renderer=numbers,
        tasks={"random": numbers},
        examples=examples,
        training=Training.model_validate({**settings, "optimizer": {"lr": 1e-9}}),
        seed=0,
        device=device,
        folder=Path(),
        log=lines.append,
        warn=lambda _: None,
    )
    adapter.train_stage(replace(context))
    return lines
