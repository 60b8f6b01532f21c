"""What a teacher promises: log-probabilities of the student's exact token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from harness.errors import TrainingError
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch

CERTAIN_STEP, CERTAIN_RESPONSE = 16, 8


class Teacher(Protocol):
    """Scores response tokens; never returns a score that it did not compute."""

    def score(self, batch: Batch, wanted: TeacherRequest, temperature: float) -> TeacherScores:
        """Return log-probabilities of the batch's N targets, and what else is wanted at each position."""
        ...


def checked(scores: TeacherScores) -> TeacherScores:
    """Return scores that a model can have computed.

    Raises `TrainingError` for log-probabilities that are not finite or above 0, and for a top K that holds more than all
    of the mass.
    """
    for name, values in (("a response token", scores.sampled), ("its most probable tokens", scores.top_logprobs)):
        if not torch.isfinite(values).all():
            raise TrainingError(
                f"the teacher's log-probability of {name} is not finite; check its weights and dtype, or its server"
            )
        if (values > 1e-4).any():
            raise TrainingError(
                f"the teacher's log-probability of {name} is above 0; it must return natural logarithms"
            )
    if scores.top_logprobs.shape[-1] and (mass := float(scores.top_logprobs.exp().sum(-1).max())) > 1.01:
        raise TrainingError(f"the teacher's most probable tokens have a mass of {mass:.3g}, which cannot be above 1")
    return scores


def refuse_certainty(parts: Sequence[tuple[Batch, Tensor]]) -> None:
    """Raise `TrainingError` when every token of a response, or of a whole step, has probability 1: nothing was scored.

    `parts` are a step's batches with the teacher's log-probabilities (N,) of their targets. A failed request that is filled
    with zeros looks like this (METHOD section 4). Short answers may be certain: where a teacher puts less than 6e-8 elsewhere,
    float32 rounds its logarithm to 0. A response of 8 tokens without any doubt at all, or 16 tokens of a step, is no answer
    of a model's.
    """
    count = sum(scores.numel() for _, scores in parts)
    if count >= CERTAIN_STEP and all(bool((scores == 0).all()) for _, scores in parts):
        raise TrainingError(
            f"the teacher gave probability 1 to all {count} tokens of a step; its answers were not scored, see its log"
        )
    for batch, scores in parts:
        _refuse_certain_responses(batch, scores)


def _refuse_certain_responses(batch: Batch, scores: Tensor) -> None:
    lengths = [len(rollout.response) for rollout in batch.rollouts]
    if len(scores) != sum(lengths):
        return
    for rollout, part in zip(batch.rollouts, torch.split(scores == 0, lengths), strict=True):
        if len(part) >= CERTAIN_RESPONSE and bool(part.all()):
            raise TrainingError(
                f"the teacher gave probability 1 to all {len(part)} tokens of a response to item {rollout.example.item_id} of "
                f"{rollout.example.task}; its request was not scored, see the teacher's log"
            )
