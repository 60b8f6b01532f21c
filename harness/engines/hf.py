"""Generation with transformers: prompts are batched by length, and finished sequences leave the batch.

`model.generate` computes every sequence until the longest one ends. Here the key-value cache drops rows as sequences finish.
Decoding uses tensors that never move if the model supports it (`static_decoding`), otherwise a cache that grows with each
token (`decoding`). A recurrent or hybrid model keeps more than keys and values and cannot drop rows, so `model.generate`
decodes it, with tokens drawn here. Oracle: greedy answers equal those of `model.generate` (tests/engines/test_engines.py;
`make architectures` for every causal architecture of transformers).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
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

from harness.engines.decoding import BatchDecoder, completions_of, left_padded
from harness.engines.engine import Completion, Sampling
from harness.lm.seeding import prompt_seeds

# Devices on which decoding uses tensors that never move; each has a `Pace`.
STATIC_ON = {"cuda", "cpu"}


class HFEngine:
    """Generates with a model in this process, always with its current weights; see `Engine`."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._static: dict[
            str, bool
        ] = {}  # by attention implementation: whether fixed tensors give the model's own logits

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions of `prompts`; see `Engine`."""
        decoding = self._decoding(max(map(len, prompts), default=0) + sampling.max_new_tokens)
        seeds = torch.tensor(prompt_seeds(prompts, sampling.seed), device=self.model.device, dtype=torch.long)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        completions: dict[int, Completion] = {}
        with _without_dropout(self.model):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                decoded = decoding(self.model, self.tokenizer, sampling).run([prompts[i] for i in rows], seeds[rows])
                completions.update(zip(rows, decoded, strict=True))
        return [completions[i] for i in range(len(prompts))]

    def _decoding(self, length: int) -> type[BatchDecoder]:
        """Return the decoding class for texts of at most `length` tokens, by what the model's cache and the device support."""
        if not drops_rows(self.model):
            return StockDecoder
        if self.model.device.type not in STATIC_ON:
            return BatchDecoder
        from harness.engines.static_decoding import StaticDecoder, has_fixed_cache, static_difference

        if not has_fixed_cache(self.model, length):
            return BatchDecoder
        attention = self.model.config._attn_implementation
        if attention not in self._static:
            with _without_dropout(self.model):
                reason = static_difference(self.model)
            self._static[attention] = reason is None
            if reason is not None:
                name = type(self.model).__name__
                warnings.warn(f"{name} is decoded with a growing cache, which is slower ({reason})", stacklevel=2)
        return StaticDecoder if self._static[attention] else BatchDecoder


@contextmanager
def _without_dropout(model: Any) -> Generator[None]:
    """Put the model into evaluation mode in this block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def drops_rows(model: Any) -> bool:
    """Return whether a model's only state is a cache that can drop rows, and it takes positions, so that padding works."""
    arguments = inspect.signature(model.forward).parameters
    if getattr(model, "_is_stateful", False) or not {"past_key_values", "position_ids"} <= set(arguments):
        return False
    return all(hasattr(layer, "batch_select_indices") for layer in DynamicCache(config=model.config).layers)


class StockDecoder(BatchDecoder):
    """Decodes with `model.generate`, which handles what each architecture keeps between steps.

    Only prompts of equal length are decoded together, because some recurrent models read padding as text.
    """

    def run(self, prompts: list[list[int]], seeds: Tensor) -> list[Completion]:
        """Decode until every row has stopped or used its budget; `seeds` (rows,) determine each row's draws."""
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

        # The suite decides how to decode, so the checkpoint's generation settings, such as a repetition penalty, are left out.
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(max_new_tokens=budget, do_sample=False, pad_token_id=0)
        try:
            generated = self.model.generate(
                ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([Draw()]),
                stopping_criteria=StoppingCriteriaList([Stop()]),
            )
        finally:
            self.model.generation_config = own
        return completions_of(generated[:, width:], lengths, stopped)
