"""What a teacher promises: log-probabilities of the student's exact token ids."""

from __future__ import annotations

from typing import Literal, Protocol

from harness.logprobs import TeacherScores, Wanted
from harness.rollouts import Batch

Needs = Literal["none", "sampled", "top_k", "full", "generate"]


class Teacher(Protocol):
    """Scores response tokens; never returns a score that it did not compute."""

    def score(self, batch: Batch, wanted: Wanted, temperature: float) -> TeacherScores:
        """Return log-probabilities of the batch's N targets, and what else is wanted at each position."""
        ...
