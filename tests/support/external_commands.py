"""Commands that train in place of a user's own, and the stage that they get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.trainers.external import External
from harness.adapter import StageContext
from harness.errors import TrainingError
from harness.teachers.local import LocalTeacher
from tests.support.models import ScriptedEngine, byte_renderer, context, example, qwen3

# The second holds what Python, too, takes for ends of lines.
ITEMS = {"a": ("ABC", "ab"), "b": ("D\u2028\x85", "c"), "c": ("EF", "def"), "d": ("GH", "g")}


def stage(
    folder: Path, log: list[dict[str, Any]] | None = None, warned: list[str] | None = None, **budget: Any
) -> StageContext:
    renderer = byte_renderer()
    size = len(renderer.tokenizer)
    examples = [
        example(renderer.encode_prompt(prompt), renderer.encode_targets([target], [""])[0], name)
        for name, (prompt, target) in ITEMS.items()
    ]
    training = {"steps": 2, "prompts_per_step": 3, "optimizer": {"lr": 1e-2}, **budget}
    student = qwen3(size, dtype=torch.float32)
    teacher = LocalTeacher(qwen3(size, seed=1, dtype=torch.float32), renderer.tokenizer, renderer.tokenizer)
    ctx = context(student, ScriptedEngine([]), examples, training, teacher, log)
    sentences: list[str] = [] if warned is None else warned
    return replace(ctx, renderer=renderer, folder=folder, warn=sentences.append)


def python(code: str, *arguments: str) -> External:
    """Return the adapter with a command that runs `code`; `{output}` is its last argument."""
    return External(command=("{python}", "-c", code, *arguments, "{output}"))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def refused(adapter: External, ctx: StageContext) -> str:
    """Return the one sentence of a stage that fails and leaves the student as it was."""
    before = weights(ctx.student.model)
    with pytest.raises(TrainingError) as caught:
        adapter.train_stage(ctx)
    assert same(weights(ctx.student.model), before)
    return str(caught.value)
