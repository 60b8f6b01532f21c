"""Generation with transformers: prompts batched by length, finished sequences leave the batch.

`model.generate` pays for every sequence until the longest one ends. Here the key-value cache drops rows as sequences finish.
A GPU decodes on tensors that never move where the model allows it (`static_decoding`).
A model that keeps anything but keys and values of attention (recurrent, hybrid) cannot drop rows, so it is decoded by
`model.generate`, with the draws made here. Oracle: greedy answers equal `model.generate`'s (tests/engines/test_engines.py,
and every causal architecture of transformers by `make architectures`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from harness.engines.decoding import Decoding, completions_of, left_padded
from harness.engines.engine import Completion, Sampling
from harness.lm.seeding import prompt_seeds

# Devices on which a step is decoded on tensors that never move, so that it can be captured as a graph.
STATIC_ON = {"cuda"}


class HFEngine:
    """Generates with a model that lives in this process, so that new weights are simply there."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._static: dict[str, bool] = {}  # by attention: whether fixed tensors give the model's own logits

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions of `prompts`; see `Engine`."""
        decoding = self._decoding(max(map(len, prompts), default=0) + sampling.max_new_tokens)
        was_training = self.model.training
        self.model.eval()
        seeds = torch.tensor(prompt_seeds(prompts, sampling.seed), device=self.model.device, dtype=torch.long)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            decoded = decoding(self.model, self.tokenizer, sampling).run([prompts[i] for i in rows], seeds[rows])
            completions.update(zip(rows, decoded, strict=True))
        self.model.train(was_training)
        return [completions[i] for i in range(len(prompts))]

    def _decoding(self, length: int) -> type[Decoding]:
        """Return how texts of at most `length` tokens are decoded: what the model's cache and the device allow."""
        if not drops_rows(self.model):
            return StockDecoding
        if self.model.device.type not in STATIC_ON:
            return Decoding
        from harness.engines.static_decoding import StaticDecoding, differs, stays_fixed

        if not stays_fixed(self.model, length):
            return Decoding
        attention = self.model.config._attn_implementation
        if attention not in self._static:
            was_training = self.model.training
            reason = differs(self.model.eval())
            self.model.train(was_training)
            self._static[attention] = reason is None
            if reason is not None:
                name = type(self.model).__name__
                warnings.warn(f"{name} is decoded with a growing cache, which is slower ({reason})", stacklevel=2)
        return StaticDecoding if self._static[attention] else Decoding


def drops_rows(model: Any) -> bool:
    """Return whether a model keeps nothing but a cache that can drop rows, and takes positions, so that it may be padded."""
    takes = inspect.signature(model.forward).parameters
    if getattr(model, "_is_stateful", False) or not {"past_key_values", "position_ids"} <= set(takes):
        return False
    return all(hasattr(layer, "batch_select_indices") for layer in DynamicCache(config=model.config).layers)


class StockDecoding(Decoding):
    """Decodes by `model.generate`, which knows what each architecture keeps between steps.

    Only prompts of one length are decoded together, because some recurrent models read padding as text.
    """

    def run(self, prompts: list[list[int]], seeds: Tensor) -> list[Completion]:
        """Decode until every row has stopped or used its budget; `seeds` (rows,) decide each row's draws."""
        completions: dict[int, Completion] = {}
        for length in sorted(set(map(len, prompts))):
            rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            completions.update(zip(rows, self._run([prompts[i] for i in rows], seeds[rows]), strict=True))
        return [completions[i] for i in range(len(prompts))]

    def _run(self, prompts: list[list[int]], seeds: Tensor) -> list[Completion]:
        ids, mask = left_padded(prompts, self.device)
        width, budget = ids.shape[1], self.sampling.max_new_tokens
        lengths = torch.full((len(prompts),), budget, device=self.device)
        stopped = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        decoding = self

        class Draw(LogitsProcessor):
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                drawn = decoding._draw(scores, seeds, input_ids.shape[1] - width)
                return torch.full_like(scores, -torch.inf).scatter_(-1, drawn[:, None], 0.0)

        class Stop(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                now = decoding._stops(input_ids[:, -1], input_ids[:, width:]) & ~stopped
                lengths[now] = input_ids.shape[1] - width
                stopped.logical_or_(now)
                return stopped.clone()

        # The checkpoint's own generation settings, such as a repetition penalty, are not the suite's.
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(max_new_tokens=budget, do_sample=False, pad_token_id=0)
        try:
            made = self.model.generate(
                ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([Draw()]),
                stopping_criteria=StoppingCriteriaList([Stop()]),
            )
        finally:
            self.model.generation_config = own
        return completions_of(made[:, width:], lengths, stopped)
