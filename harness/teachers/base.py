"""What a teacher promises: log-probabilities of the student's exact token ids.

To add a teacher, write one file with two classes and register the first one under the entry point group `harness.teachers`:

- a `TeacherKind`: its fields are the suite's keys under `teacher`, its `open` returns
- an `OpenTeacher`: `score`, `identity` and `close`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from harness.config.teacher import Needs, TeacherSettings
from harness.errors import TrainingError
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch

CERTAIN_STEP, CERTAIN_RESPONSE = 16, 8


class Teacher(Protocol):
    """Scores response tokens; never returns a score that it did not compute."""

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """Return log-probabilities of the batch's N targets, and what else `request` names at each position."""
        ...


class OpenTeacher(ABC):
    """A teacher that a run holds from one stage to the next."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A digest or revision of its weights, for the manifest."""

    @abstractmethod
    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`."""

    def close(self) -> None:  # noqa: B027 - most teachers have nothing to close
        """Give back processes, connections and memory."""


@dataclass(frozen=True)
class TeacherSite:
    """Where a teacher works: the device of the run, and the run's folder for its log and its cache."""

    device: str
    folder: Path


class TeacherKind(TeacherSettings, ABC):
    """A registered way to have a teacher; its fields are its settings in the suite.

    `provides`: what it can return. A teacher that provides `generate` also implements `harness.engines.base.Engine`.
    """

    provides: ClassVar[frozenset[Needs]] = frozenset({"sampled"})

    def check(self) -> None:
        """Raise `ConfigError` where it cannot be had; called before anything is done."""

    @property
    def context(self) -> int | None:
        """The longest sequence that it scores, in tokens; None where that is not known before it is opened."""
        return None

    @abstractmethod
    def open(self, student: Loaded, site: TeacherSite) -> OpenTeacher:
        """Return the teacher for this student; raises `ModelError` where their vocabularies differ."""


def checked(scores: TeacherScores) -> TeacherScores:
    """Return the scores if a model can have computed them.

    Raises `TrainingError` for log-probabilities that are not finite or above 0, and for a top K with a mass above 1.
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
    """Raise `TrainingError` when every token of a response, or of a whole step, has probability 1.

    `parts` are a step's batches with the teacher's log-probabilities (N,) of their targets. A failed request that is filled
    with zeros looks like this. A short answer may be certain: float32 rounds a log-probability to 0 where less than 6e-8 of
    the mass lies elsewhere. So a response is refused from 8 tokens on, and a step from 16.
    """
    count = sum(scores.numel() for _, scores in parts)
    if count >= CERTAIN_STEP and all(bool((scores == 0).all()) for _, scores in parts):
        raise TrainingError(
            f"the teacher gave probability 1 to all {count} tokens of a step, so it did not score them; see its log"
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
                f"{rollout.example.task}, so it did not score them; see its log"
            )
