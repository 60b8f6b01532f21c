"""Fault checks: responses without tokens, teachers with impossible scores, vocabularies that do not match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from adapters.conformance.outcomes import ConformanceError, DoesNotApply
from adapters.conformance.small_stage import PAIRS, AdapterUnderTest, small_model, train_small_stage, word_tokenizer
from harness.adapter import StageContext
from harness.errors import ModelError, TrainingError
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch
from harness.teachers.local import LocalTeacher

EMPTY = [(prompt, list[int]()) for prompt, _ in PAIRS]
CUT = [(prompt, [9, 8, 7, 6, 5, 4, 3, 2, 9, 8]) for prompt, _ in PAIRS]
MIXED = [*EMPTY[:2], *CUT[2:4], *PAIRS[4:]]


def survives_empty_and_cut_responses(subject: AdapterUnderTest) -> None:
    """Responses that are empty or cut off leave the weights finite, and training goes on."""
    for name, pairs in (("all empty", EMPTY), ("all cut off", CUT), ("some empty, some cut off", MIXED)):
        ctx = subject.stage(pairs, steps=2, dtype=torch.float32)
        result = train_small_stage(subject.adapter, ctx)
        if any(not bool(torch.isfinite(p).all()) for p in ctx.student.model.parameters()):
            raise ConformanceError(
                f"with responses {name} the weights are no longer finite; divide by at least one token"
            )
        if result.steps not in (0, 2):
            raise ConformanceError(
                f"with responses {name} it took {result.steps} of 2 steps; a step without tokens counts too"
            )


def refuses_nan(subject: AdapterUnderTest) -> None:
    """A teacher whose weights are NaN stops the stage with TrainingError, before the student changes."""
    ctx = subject.stage(dtype=torch.float32)
    for teacher in _scoring(subject, ctx):
        teacher.model.get_output_embeddings().weight.fill_(float("nan"))
    _must_refuse(subject, ctx, "NaN")


def refuses_silent_zeros(subject: AdapterUnderTest) -> None:
    """A teacher that gives probability 1 to every token, as after failed requests, stops the stage with TrainingError."""
    _must_refuse_zeros(subject, "log-probability 0 for every token", rows=None)


def refuses_a_failed_request(subject: AdapterUnderTest) -> None:
    """A teacher that gives probability 1 to all tokens of one response, as after a failed request, stops the stage."""
    _must_refuse_zeros(subject, "log-probability 0 for every token of one response", rows=1)


def _must_refuse_zeros(subject: AdapterUnderTest, what: str, rows: int | None) -> None:
    ctx = subject.stage(CUT, dtype=torch.float32)
    certain = {id(teacher): Certain(teacher, rows) for teacher in _scoring(subject, ctx)}
    # `Certain` has all attributes of a local teacher that a stage uses.
    parts: dict[str, Any] = {"teacher": certain.get(id(ctx.teacher)), "reference": certain.get(id(ctx.reference))}
    _must_refuse(subject, replace(ctx, **parts), what, lambda: any(teacher.asked for teacher in certain.values()))


def refuses_other_vocabularies(subject: AdapterUnderTest) -> None:
    """A teacher whose output layer has another number of rows than the student's is refused with ModelError."""
    needs = subject.adapter.requirements.teacher
    if needs == "none":
        raise DoesNotApply("it needs no teacher")
    if needs == "generate":
        raise DoesNotApply(
            "its teacher only answers; a run compares vocabularies when it loads the teacher, before any adapter"
        )
    own, size = word_tokenizer(subject.vocabulary), subject.vocabulary + 1
    padded = LocalTeacher(small_model(size, 1, torch.float64), own, own)
    try:
        train_small_stage(subject.adapter, replace(subject.stage(), teacher=padded))
    except ModelError:
        return
    raise ConformanceError(
        f"a teacher with {size} tokens and a student with {size - 1} trained without an error; call `check_same_rows`"
    )


@dataclass
class Certain:
    """A teacher that gives probability 1 to all tokens of each batch's first `rows` responses, None for all.

    `asked` counts its calls.
    """

    teacher: LocalTeacher
    rows: int | None = None
    asked: int = 0

    @property
    def model(self) -> Any:
        """The teacher's model, for methods that move its weights."""
        return self.teacher.model

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """Return the teacher's scores with log-probability 0 for the tokens of the failed responses."""
        self.asked += 1
        scores = self.teacher.score(batch, request, temperature)
        failed = sum(len(rollout.response) for rollout in batch.rollouts[: self.rows])
        return replace(scores, sampled=torch.cat([torch.zeros_like(scores.sampled[:failed]), scores.sampled[failed:]]))


def _scoring(subject: AdapterUnderTest, ctx: StageContext) -> list[LocalTeacher]:
    """Return the teachers whose scores a stage uses; raises `DoesNotApply` where there is none."""
    teachers = [ctx.reference] if subject.adapter.requirements.teacher == "generate" else [ctx.teacher, ctx.reference]
    found = [teacher for teacher in teachers if isinstance(teacher, LocalTeacher)]
    if not found:
        raise DoesNotApply("no teacher scores its tokens")
    return found


def _must_refuse(
    subject: AdapterUnderTest, ctx: StageContext, what: str, asked: Callable[[], bool] = lambda: True
) -> None:
    before = [p.detach().clone() for p in ctx.student.model.parameters()]
    refused = _training_error(subject, ctx)
    if not asked():
        raise DoesNotApply("it reads its teacher's weights and never asks for scores")
    if not refused:
        raise ConformanceError(
            f"the teacher gave {what} and training went on; use `ask` and `refuse_certainty` of harness.teachers.score_checks"
        )
    if any(not torch.equal(one, two) for one, two in zip(before, ctx.student.model.parameters(), strict=True)):
        raise ConformanceError(
            f"the teacher gave {what} and the weights changed before the stage was refused; check first"
        )


def _training_error(subject: AdapterUnderTest, ctx: StageContext) -> bool:
    try:
        train_small_stage(subject.adapter, ctx)
    except TrainingError:
        return True
    return False
