"""Rollouts for several processes from an engine that only the first one has, such as vLLM: all get the completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.engines.engine import Completion, Sampling
from harness.engines.student import StudentEngine
from harness.lm.ranks import current_ranks


class FirstProcessEngine:
    """An `Engine` that all processes of a stage call together; `engine` is None in all but the first.

    The first process gives the engine the student's weights, so all processes must be inside `Trainable.whole` at the call.
    """

    def __init__(self, engine: StudentEngine | None) -> None:
        self.engine = engine

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions of all prompts, in every process; see `Engine`."""
        return self.begin(prompts, sampling)()

    def begin(self, prompts: Sequence[list[int]], sampling: Sampling) -> Callable[[], list[Completion]]:
        """Begin to answer with the current weights; return a function that waits, which all processes must call."""
        wait = self.engine.begin(prompts, sampling) if self.engine else None
        return lambda: current_ranks().from_first(wait() if wait else [])
