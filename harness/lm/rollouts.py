"""Rollouts, and the batches made of them: which positions predict a response token, and the weight of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Finish = Literal["stop", "length"]
Reduction = Literal["sequence_mean", "token_mean", "micro_batch_mean"]


@dataclass(frozen=True)
class Example:
    """One training item of a task as token ids; `target` ends with the stop token."""

    task: str
    item_id: str
    doc: dict[str, Any]
    prompt: list[int]
    target: list[int]


@dataclass(frozen=True)
class Rollout:
    """A prompt with one response; the response keeps its stop token, so that the student also learns to stop.

    `logprobs` are the log-probabilities with which the engine drew the tokens, if the engine reports them. `reward` is the
    task's grade, if a method asked for it; `credit` is the advantage that reward methods give to the whole response.
    """

    example: Example
    response: list[int]
    finish: Finish
    credit: float = 0.0
    reward: float | None = None
    logprobs: tuple[float, ...] | None = None

    @property
    def prompt_and_response(self) -> list[int]:
        """The sequence that student and teacher read."""
        return self.example.prompt + self.response


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences (B, T); N response tokens in row-major order.

    `predicts` (B, T) is true at position t when token t + 1 belongs to the response. `targets`, `weights` and `credit` (N,)
    are those tokens, their share of the loss and the credit of their response. Masks come from lengths, never from the pad
    id, which may equal eos. `rollouts` has one entry per row.
    """

    input_ids: Tensor
    predicts: Tensor
    targets: Tensor
    weights: Tensor
    credit: Tensor
    rollouts: tuple[Rollout, ...]


def make_batches(
    rollouts: Sequence[Rollout], reduction: Reduction, micro_batch: int | None, device: torch.device | str = "cpu"
) -> list[Batch]:
    """Split rollouts into micro-batches of similar length whose weighted losses add up to the one-batch loss.

    `sequence_mean` gives each token the weight 1 / (B |y|), `token_mean` 1 / sum |y|, over all rollouts together.
    `micro_batch_mean` gives it (b / B) / sum |y| over the b sequences of its micro-batch, so that the loss depends on
    `micro_batch`; it is what the released AOPD code computes (a token mean in each micro-batch, weighted by its share of the
    sequences). Empty responses have no tokens and are left out.
    """
    filled = sorted((r for r in rollouts if r.response), key=lambda r: len(r.prompt_and_response), reverse=True)
    if not filled:
        return []
    tokens = sum(len(r.response) for r in filled)
    size = micro_batch or len(filled)
    groups = [filled[start : start + size] for start in range(0, len(filled), size)]
    return [_collate(group, reduction, len(filled), tokens, device) for group in groups]


def _collate(
    group: Sequence[Rollout], reduction: Reduction, sequences: int, tokens: int, device: torch.device | str
) -> Batch:
    width = max(len(r.prompt_and_response) for r in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    predicts = torch.zeros(len(group), width, dtype=torch.bool)
    weights: list[float] = []
    own = sum(len(r.response) for r in group)
    credit: list[float] = []
    for row, rollout in enumerate(group):
        start, length = len(rollout.example.prompt), len(rollout.response)
        ids[row, : start + length] = torch.tensor(rollout.prompt_and_response)
        predicts[row, start - 1 : start + length - 1] = True
        shares = {
            "sequence_mean": 1 / (sequences * length),
            "token_mean": 1 / tokens,
            "micro_batch_mean": len(group) / (sequences * own),
        }
        weights += [shares[reduction]] * length
        credit += [rollout.credit] * length
    targets = torch.tensor([token for rollout in group for token in rollout.response])
    weight, credits = torch.tensor(weights, device=device), torch.tensor(credit, device=device)
    return Batch(ids.to(device), predicts.to(device), targets.to(device), weight, credits, tuple(group))


def with_prompts(batch: Batch, prompts: Sequence[list[int]]) -> Batch:
    """Return a batch of the same responses in the same order after different prompts, one per row."""
    rows = [replace(r, example=replace(r.example, prompt=p)) for r, p in zip(batch.rollouts, prompts, strict=True)]
    return _collate(rows, "token_mean", len(rows), len(batch.targets), batch.input_ids.device)
