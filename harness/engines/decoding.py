"""Decode one batch with a key-value cache that grows with each token and drops rows as they finish."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, StopStringCriteria, TopKLogitsWarper, TopPLogitsWarper

from harness.engines.engine import Completion, Sampling
from harness.lm.seeding import race_times

COMPACT_BELOW = 0.75  # share of running rows below which finished rows leave the cache


class BatchDecoder:
    """Decodes one batch of prompts with one model and one set of sampling settings."""

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        self.device = model.device
        self.stop_ids = torch.tensor(sampling.stop_ids, device=self.device, dtype=torch.long)
        self.warpers = _warpers(sampling)
        self._no_ids: Any = None  # the warpers take ids, but these two do not read them
        strings = list(sampling.stop_strings)
        self.stop_strings = StopStringCriteria(tokenizer, strings) if strings else None

    def run(self, prompts: list[list[int]], seeds: Tensor) -> list[Completion]:
        """Decode until every row has stopped or used its budget; `seeds` (rows,) determine each row's draws."""
        logits, mask, positions, cache = self._read(prompts)
        alive = torch.arange(len(prompts), device=self.device)  # the prompt of each of the cache's rows
        tokens = torch.zeros(len(prompts), self.sampling.max_new_tokens, dtype=torch.long, device=self.device)
        lengths = torch.full((len(prompts),), self.sampling.max_new_tokens, device=self.device)
        running = torch.ones(len(prompts), dtype=torch.bool, device=self.device)
        for step in range(self.sampling.max_new_tokens):
            drawn = self._draw(logits, seeds[alive], step)
            tokens[alive, step] = drawn
            stopped = running & self._stops(drawn, tokens[alive, : step + 1])
            lengths[alive[stopped]] = step + 1
            running &= ~stopped
            if not running.any():
                break
            if running.float().mean() < COMPACT_BELOW:
                kept = running.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                drawn, positions, mask, alive, running = (x[kept] for x in (drawn, positions, mask, alive, running))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
            if step + 1 < self.sampling.max_new_tokens:
                logits = self._next(drawn[:, None], mask, positions, cache)
        stopped_rows = torch.ones(len(prompts), dtype=torch.bool, device=self.device)
        stopped_rows[alive[running]] = False
        return completions_of(tokens, lengths, stopped_rows)

    def _read(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, DynamicCache]:
        """Read the prompts, equal ones once.

        Returns the logits (B, V) of the next tokens, mask and positions (B, T), and the cache.
        """
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        ids, mask = left_padded([list(prompt) for prompt in distinct], self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        logits = self._next(ids, mask, positions, cache)
        if len(distinct) < len(prompts):
            rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=self.device)
            cache.batch_select_indices(rows)
            logits, mask, positions = logits[rows], mask[rows], positions[rows]
        return logits, mask, positions, cache

    def _next(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _draw(self, logits: Tensor, seeds: Tensor, position: int | Tensor) -> Tensor:
        """Return the next token of each row (B,) from its logits (B, V); `position` counts the answer's tokens from 0."""
        logits = logits.float()
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        warped = self.warpers(self._no_ids, logits / self.sampling.temperature)  # pyright: ignore[reportArgumentType]
        return (warped - race_times(seeds, position, logits.shape[-1]).log_()).argmax(-1)

    def _stops(self, drawn: Tensor, so_far: Tensor) -> Tensor:
        stopped = torch.isin(drawn, self.stop_ids)
        if self.stop_strings is not None:
            stopped = stopped | self.stop_strings(so_far, None)  # pyright: ignore[reportArgumentType]
        return stopped


def left_padded(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, T) of prompts, padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers


def completions_of(tokens: Tensor, lengths: Tensor, stopped: Tensor) -> list[Completion]:
    """Return completions from tokens (B, budget), each row's number of tokens (B,) and whether it stopped by itself (B,)."""
    rows = zip(tokens.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
    return [Completion(row[:length], "stop" if done else "length") for row, length, done in rows]
