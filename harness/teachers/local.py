"""A teacher that is a model in this process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from harness.config.models import Model
from harness.config.teacher_identity import full_identity
from harness.errors import ModelError, TrainingError
from harness.lm.checkpoints import Loaded, config_digest, load_checkpoint, weights_digest
from harness.lm.logprobs import TeacherRequest, TeacherScores, check_head, head_of, response_hidden, teacher_scores
from harness.lm.rollouts import Batch
from harness.teachers.server_probe import FLAT, TEXT, WORDS
from harness.teachers.teacher import OpenTeacher


class LocalTeacher(OpenTeacher):
    """A causal language model whose weights never change.

    Raises `ModelError` if its vocabulary differs from the student's, because ids would mean different tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, student_tokenizer: Any, identity: str = "") -> None:
        if tokenizer.get_vocab() != student_tokenizer.get_vocab():
            raise ModelError(
                f"teacher and student do not share a vocabulary ({len(tokenizer)} and {len(student_tokenizer)} tokens); "
                "on-policy distillation scores the student's exact ids, so use models with the same tokenizer"
            )
        self.model = model.eval().requires_grad_(False)
        self._identity = identity

    @property
    def identity(self) -> str:
        """The digests of its weights and configuration; empty for a model that was not loaded from a checkpoint."""
        return self._identity

    @property
    def computes_in(self) -> str:
        """The dtype of its weights, in which it computes without autocast."""
        return str(self.model.dtype).removeprefix("torch.")

    @torch.no_grad()
    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`; raises `TrainingError` for a `top_k` above the size of the vocabulary."""
        hidden = response_hidden(self.model, batch)
        head = head_of(self.model, temperature)
        if request.top_k > len(head.weight):
            raise TrainingError(
                f"top_k is {request.top_k}, but the teacher's vocabulary has {len(head.weight)} tokens; lower top_k"
            )
        return teacher_scores(hidden, head, batch.targets, request)


def frozen_copy(student: Loaded) -> LocalTeacher:
    """Return a teacher with a copy of the student's current weights."""
    tokenizer = student.renderer.tokenizer
    return LocalTeacher(copy.deepcopy(student.model), tokenizer, tokenizer)


def open_local(spec: Model, folder: Path, student: Loaded, device: str) -> LocalTeacher:
    """Load the checkpoint in `folder` as the teacher of a student.

    Output layers of different size for one tokenizer differ only in padding rows; the teacher gets as many rows as the student
    has. Raises `ModelError` for an unknown output layer, for a teacher that prefers no token, and for one with a different
    vocabulary.
    """
    loaded = load_checkpoint(folder, spec, device)
    check_head(loaded.model)
    refuse_flat(loaded.model, loaded.renderer.tokenizer)
    _match_rows(loaded.model, student)
    identity = full_identity(weights_digest(folder), config_digest(folder))
    teacher = LocalTeacher(loaded.model, loaded.renderer.tokenizer, student.renderer.tokenizer, identity)
    check_same_rows(loaded.model, student.model)
    return teacher


@torch.no_grad()
def refuse_flat(model: Any, tokenizer: Any) -> None:
    """Raise `ModelError` if a model gives all tokens the same log-probability at every position of a short text, or NaN.

    Weights that were never trained into a checkpoint, or are zero, do so. A shift or another temperature needs no check here:
    this process computes the scores of every position itself, and `check_head` compares them with the model's own.
    """
    ids = list(tokenizer.encode(TEXT, add_special_tokens=False))[:WORDS] or [0]
    place = head_of(model).weight.device
    logits = model(input_ids=torch.tensor([ids], device=place), use_cache=False).logits[0].float()
    if not bool((logits.amax(-1) - logits.amin(-1) >= FLAT).any()):
        raise ModelError(
            "the teacher gives every token the same log-probability, or NaN, at each position of a text; check that its "
            "checkpoint holds trained weights"
        )


@torch.no_grad()
def _match_rows(teacher: Any, student: Loaded) -> None:
    """Give the teacher as many rows as the student has, if this removes or adds only rows without a token.

    An added row is the mean row. Its logit is the mean logit, so K rows added to V get at most K / V of the probability.
    """
    ours, theirs = (len(model.get_output_embeddings().weight) for model in (student.model, teacher))
    if ours == theirs or min(ours, theirs) <= max(student.renderer.tokenizer.get_vocab().values()):
        return
    teacher.resize_token_embeddings(ours, mean_resizing=False)
    for layer in {teacher.get_output_embeddings(), teacher.get_input_embeddings()} if ours > theirs else ():
        for values in (layer.weight, getattr(layer, "bias", None)):
            if values is not None:
                values[theirs:] = values[:theirs].mean(0)


def check_same_rows(teacher: Any, student: Any) -> None:
    """Raise `ModelError` if the output layers differ in size, as 151936 and 152064 rows do within one model family.

    A teacher's most probable token could then have no row in the student.
    """
    rows = [len(model.get_output_embeddings().weight) for model in (teacher, student)]
    if rows[0] != rows[1]:
        raise ModelError(
            f"teacher and student have {rows[0]} and {rows[1]} rows in their output layers; pad one to the other's size"
        )
