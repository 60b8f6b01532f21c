"""Measure generation by our engine, which drops finished responses from the batch, and by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.setting import Setting


def engine_tokens(setting: Setting) -> Callable[[int], int]:
    """Return a measure that generates one batch with our engine and counts its response tokens."""
    prompts = _prompts(setting)

    def generate(seed: int) -> int:
        completions = setting.context.engine.generate(prompts, setting.sampling(seed))
        return sum(len(completion.tokens) for completion in completions)

    return generate


def transformers_tokens(setting: Setting) -> Callable[[int], int]:
    """Return a measure that generates the same batch with `model.generate` and counts its response tokens."""
    model, tokenizer = setting.student.model.eval(), setting.student.renderer.tokenizer
    tokenizer.padding_side = "left"
    inputs = tokenizer.pad({"input_ids": _prompts(setting)}, return_tensors="pt")
    sampling = setting.sampling(0)
    stop_ids, width = list(sampling.stop_ids), inputs["input_ids"].shape[1]

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=stop_ids,
            pad_token_id=tokenizer.pad_token_id,
        )
        return sum(_length(row, stop_ids) for row in output[:, width:].tolist())

    return generate


def _prompts(setting: Setting) -> list[list[int]]:
    return [example.prompt for example in setting.prompts(0)[: setting.context.training.prompts_per_step]]


def _length(row: list[int], stop_ids: list[int]) -> int:
    """Return a response's length, stop token included; pads follow it."""
    return next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))
