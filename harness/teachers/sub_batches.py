"""Split a batch by rows, and join the scores of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch


def part_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return the batch of some rows of an unpacked batch; `rows` are ascending indices of its sequences."""
    mask = tokens_in_rows(batch, rows)
    places = torch.tensor(list(rows), device=batch.input_ids.device)
    return Batch(
        batch.input_ids[places],
        batch.predicts[list(rows)],
        batch.targets[mask],
        batch.weights[mask],
        batch.credit[mask],
        tuple(batch.rollouts[row] for row in rows),
    )


def tokens_in_rows(batch: Batch, rows: Sequence[int]) -> Tensor:
    """Return a mask (N,) of the response tokens that belong to some rows."""
    chosen, device = set(rows), batch.targets.device
    lengths = torch.tensor([len(rollout.response) for rollout in batch.rollouts], device=device)
    return torch.tensor([row in chosen for row in range(len(lengths))], device=device).repeat_interleave(lengths)


def put_together(
    batch: Batch, request: TeacherRequest, parts: Sequence[tuple[Sequence[int], TeacherScores]]
) -> TeacherScores:
    """Return the scores of a batch from those of its parts; each part is its rows and their scores."""
    count, device = len(batch.targets), batch.targets.device
    sampled = torch.full((count,), float("nan"), device=device)
    top_ids = torch.zeros(count, request.top_k, dtype=torch.long, device=device)
    top_logprobs = torch.full((count, request.top_k), float("nan"), device=device)
    entropy = torch.full((count,), float("nan"), device=device) if request.entropy else None
    for rows, scores in parts:
        mask = tokens_in_rows(batch, rows)
        sampled[mask], top_ids[mask] = scores.sampled.to(sampled.dtype), scores.top_ids
        top_logprobs[mask] = scores.top_logprobs.to(top_logprobs.dtype)
        if entropy is not None and scores.entropy is not None:
            entropy[mask] = scores.entropy.to(entropy.dtype)
    return TeacherScores(sampled, top_ids, top_logprobs, entropy)
