"""A teacher that lives in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.config.models import Model
from harness.errors import ModelError, TrainingError
from harness.lm.checkpoints import Loaded, load, weights_digest
from harness.lm.logprobs import TeacherRequest, TeacherScores, check_head, head_of, response_hidden, teacher_scores
from harness.lm.rollouts import Batch


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
    def score(self, batch: Batch, wanted: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`; raises `TrainingError` for more tokens than there are."""
        hidden = response_hidden(self.model, batch)
        head = head_of(self.model, temperature)
        if wanted.top_k > len(head.weight):
            raise TrainingError(f"top_k is {wanted.top_k}, but the teacher's vocabulary has {len(head.weight)} tokens")
        return teacher_scores(hidden, head, batch.targets, wanted)


def frozen_copy(student: Loaded) -> LocalTeacher:
    """Return a teacher that scores as the student does now."""
    tokenizer = student.renderer.tokenizer
    return LocalTeacher(copy.deepcopy(student.model), tokenizer, tokenizer)


@dataclass(frozen=True)
class HeldTeacher:
    """A teacher in memory with what it was loaded from."""

    spec: Model
    weights: str
    teacher: LocalTeacher


class TeacherPool:
    """Keeps one teacher in memory, so that stages with the same one share it."""

    def __init__(self, device: str, checkpoint_of: Callable[[Model], Path]) -> None:
        self.device, self.checkpoint_of = device, checkpoint_of
        self.held: HeldTeacher | None = None

    def take(self, spec: Model, student: Loaded) -> LocalTeacher:
        """Return the teacher that `spec` describes, for this student; another one is dropped before it is loaded."""
        if self.held is None or self.held.spec != spec:
            self.held = None
            folder = self.checkpoint_of(spec)
            loaded = load(folder, spec, self.device)
            check_head(loaded.model)
            check_same_rows(loaded.model, student.model)
            teacher = LocalTeacher(loaded.model, loaded.renderer.tokenizer, student.renderer.tokenizer)
            self.held = HeldTeacher(spec, weights_digest(folder), teacher)
        return self.held.teacher


def check_same_rows(teacher: Any, student: Any) -> None:
    """Raise `ModelError` when the output layers differ in size, as 151936 and 152064 do inside one family.

    A teacher's top token could then have no row in the student.
    """
    rows = [len(model.get_output_embeddings().weight) for model in (teacher, student)]
    if rows[0] != rows[1]:
        raise ModelError(
            f"teacher and student have {rows[0]} and {rows[1]} rows in their output layers; pad one to the other's size"
        )
