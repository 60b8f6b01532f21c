"""A teacher that lives in this process."""

from __future__ import annotations

from typing import Any

import torch

from harness.errors import ModelError, TrainingError
from harness.logprobs import TeacherScores, Wanted, head_of, response_hidden, teacher_scores
from harness.rollouts import Batch


class LocalTeacher:
    """A causal LM whose weights never change.

    Raises `ModelError` when its tokenizer differs from the student's, because ids would mean different tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, student_tokenizer: Any) -> None:
        if tokenizer.get_vocab() != student_tokenizer.get_vocab():
            raise ModelError(
                f"teacher and student do not share a vocabulary ({len(tokenizer)} and {len(student_tokenizer)} tokens); "
                "on-policy distillation scores the student's exact ids, so take models of one family"
            )
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def score(self, batch: Batch, wanted: Wanted, temperature: float) -> TeacherScores:
        """See `Teacher`; raises `TrainingError` when a score is not finite, instead of passing it on."""
        hidden = response_hidden(self.model, batch)
        head = head_of(self.model, temperature)
        if wanted.top_k > len(head.weight):
            raise TrainingError(f"top_k is {wanted.top_k}, but the teacher's vocabulary has {len(head.weight)} tokens")
        scores = teacher_scores(hidden, head, batch.targets, wanted)
        if not (torch.isfinite(scores.sampled).all() and torch.isfinite(scores.top_logprobs).all()):
            raise TrainingError(
                "the teacher returned a log-probability that is not finite; check its weights and dtype"
            )
        return scores


def check_same_rows(teacher: Any, student: Any) -> None:
    """Raise `ModelError` when the output layers differ in size, as 151936 and 152064 do inside one family.

    A teacher's top token could then have no row in the student.
    """
    rows = [len(model.get_output_embeddings().weight) for model in (teacher, student)]
    if rows[0] != rows[1]:
        raise ModelError(
            f"teacher and student have {rows[0]} and {rows[1]} rows in their output layers; pad one to the other's size"
        )
