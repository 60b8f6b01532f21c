"""Rollouts, and batches of them: which positions predict a response token, and the weight of each token in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from harness.lm.ranks import ALONE, Ranks

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

    `logprobs` are the log-probabilities, in nats, with which the engine drew the tokens, if the engine reports them. `reward`
    is the task's grade, if a method asked for it; `credit` is the advantage that reward methods give to the whole response.
    `staleness` is the number of steps between the weights that drew it and the student; None without stale rollouts.
    """

    example: Example
    response: list[int]
    finish: Finish
    credit: float = 0.0
    reward: float | None = None
    logprobs: tuple[float, ...] | None = None
    staleness: int | None = None

    @property
    def prompt_and_response(self) -> list[int]:
        """The token ids that student and teacher read."""
        return self.example.prompt + self.response


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences (B, T), or all in one row (1, T) without padding; N response tokens in row-major order.

    `predicts` (B, T), on the host, is true at position t when token t + 1 belongs to the response. `targets`, `weights` and
    `credit` (N,) are those tokens, their weights in the loss and the credit of their response. Masks come from lengths, never
    from the pad id, which may equal eos. `rollouts` has one entry per sequence. `packed`: all sequences are in one row.
    `filler`: all weights are 0, because a process that got no sequence of a micro-batch must still compute with the others.
    """

    input_ids: Tensor
    predicts: Tensor
    targets: Tensor
    weights: Tensor
    credit: Tensor
    rollouts: tuple[Rollout, ...]
    packed: bool = False
    filler: bool = False

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each sequence."""
        return [len(rollout.prompt_and_response) for rollout in self.rollouts]

    @cached_property
    def places(self) -> Tensor:
        """The indices (N,) of `predicts` in the flattened ids; computed on the host, so that a GPU does not have to wait."""
        return self.predicts.flatten().nonzero()[:, 0].to(self.input_ids.device)

    @property
    def padding(self) -> int:
        """How many of the positions are padding."""
        return self.input_ids.numel() - sum(self.lengths)

    def padded(self) -> Batch:
        """Return the same batch with one right-padded row for each sequence."""
        if not self.packed:
            return self
        ids, predicts = _rows(self.rollouts)
        device = self.input_ids.device
        return replace(self, input_ids=ids.to(device), predicts=predicts, packed=False)


def make_batches(
    rollouts: Sequence[Rollout],
    reduction: Reduction,
    micro_batch: int | None,
    device: torch.device | str = "cpu",
    tokens: int | None = None,
    packed: bool = False,
    ranks: Ranks = ALONE,
) -> list[Batch]:
    """Split rollouts into micro-batches of similar length whose weighted losses add up to the one-batch loss.

    A micro-batch has at most `micro_batch` sequences and `tokens` positions, padding included; a longer sequence gets its own.
    `packed` puts its sequences into one row. Empty responses have no tokens and are left out.

    Several processes (`ranks`) share each micro-batch: `micro_batch` counts the sequences of all of them together, `tokens`
    the positions of each one, up to one sequence more. All get the same number of batches, and tokens have the same weights
    as with one process.

    `sequence_mean` gives each token the weight 1 / (B |y|), `token_mean` 1 / sum |y|, over all B rollouts. `micro_batch_mean`
    gives it (b / B) / sum |y| over the b sequences of its micro-batch, so the loss depends on `micro_batch`. The released AOPD
    code computes this: a token mean in each micro-batch, weighted by its share of the sequences.
    """
    filled = sorted((r for r in rollouts if r.response), key=lambda r: len(r.prompt_and_response), reverse=True)
    if not filled:
        return []
    total = sum(len(r.response) for r in filled)
    groups = _groups(filled, micro_batch or len(filled), tokens, packed, ranks.size)
    whole = [_collate(group, reduction, len(filled), total, device, packed) for group in groups]
    return whole if ranks.size == 1 else [_part(batch, ranks) for batch in whole]


def _part(batch: Batch, ranks: Ranks) -> Batch:
    """Return one process's sequences of a micro-batch with their weights; a filler if it gets none."""
    mine = range(ranks.rank, len(batch.rollouts), ranks.size)
    rollouts = tuple(batch.rollouts[i] for i in mine) or batch.rollouts[-1:]
    lengths = [len(rollout.response) for rollout in batch.rollouts]
    weights, credit = batch.weights.split(lengths), batch.credit.split(lengths)
    part = _collate(rollouts, "token_mean", len(rollouts), 1, batch.input_ids.device, batch.packed)
    if not mine:
        return replace(part, weights=torch.zeros_like(part.weights), filler=True)
    own = {"weights": torch.cat([weights[i] for i in mine]), "credit": torch.cat([credit[i] for i in mine])}
    return replace(part, **own)


def _groups(filled: list[Rollout], size: int, tokens: int | None, packed: bool, processes: int) -> list[list[Rollout]]:
    """Return groups of rollouts, longest first; a group ends where the next one would exceed its sequences or positions."""
    groups: list[list[Rollout]] = []
    used = 0
    for rollout in filled:
        # A group's first rollout is its longest, to whose length all rows are padded.
        more = len(rollout.prompt_and_response) if packed or not groups else len(groups[-1][0].prompt_and_response)
        if not groups or len(groups[-1]) == size or (tokens is not None and used + more > tokens * processes):
            groups.append([])
            used, more = 0, len(rollout.prompt_and_response)
        groups[-1].append(rollout)
        used += more
    return groups


def _collate(
    group: Sequence[Rollout],
    reduction: Reduction,
    sequences: int,
    tokens: int,
    device: torch.device | str,
    packed: bool,
) -> Batch:
    ids, predicts = _rows(group)
    if packed:
        real = torch.arange(ids.shape[1]) < torch.tensor([[len(r.prompt_and_response)] for r in group])
        ids, predicts = ids[real][None], predicts[real][None]
    weights: list[float] = []
    own = sum(len(r.response) for r in group)
    credit: list[float] = []
    for rollout in group:
        length = len(rollout.response)
        shares = {
            "sequence_mean": 1 / (sequences * length),
            "token_mean": 1 / tokens,
            "micro_batch_mean": len(group) / (sequences * own),
        }
        weights += [shares[reduction]] * length
        credit += [rollout.credit] * length
    targets = torch.tensor([token for rollout in group for token in rollout.response])
    weight, credits = torch.tensor(weights, device=device), torch.tensor(credit, device=device)
    return Batch(ids.to(device), predicts, targets.to(device), weight, credits, tuple(group), packed)


def _rows(group: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
    """Return ids and `predicts` (B, T) with one row for each rollout."""
    width = max(len(r.prompt_and_response) for r in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    predicts = torch.zeros(len(group), width, dtype=torch.bool)
    for row, rollout in enumerate(group):
        start, length = len(rollout.example.prompt), len(rollout.response)
        ids[row, : start + length] = torch.tensor(rollout.prompt_and_response)
        predicts[row, start - 1 : start + length - 1] = True
    return ids, predicts


def with_prompts(batch: Batch, prompts: Sequence[list[int]]) -> Batch:
    """Return a batch of the same responses in the same order after different prompts, one per sequence.

    Its weights are a token mean, and its credit is that of the responses.
    """
    rows = [replace(r, example=replace(r.example, prompt=p)) for r, p in zip(batch.rollouts, prompts, strict=True)]
    return _collate(rows, "token_mean", len(rows), len(batch.targets), batch.input_ids.device, batch.packed)
