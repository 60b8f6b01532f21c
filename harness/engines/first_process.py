"""Rollouts of several processes from an engine that the first one alone has, such as vLLM: it asks, all get the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.engines.engine import Completion, Sampling
from harness.engines.student import StudentEngine
from harness.lm.ranks import current_ranks


class FirstProcessEngine:
    """An `Engine` that all processes of a stage call together; `engine` is None in all but the first.

    The first process hands the weights over, so all of them must have the student whole during the call.
    """

    def __init__(self, engine: StudentEngine | None) -> None:
        self.engine = engine

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions of all prompts, in every process; see `Engine`."""
        return self.begin(prompts, sampling)()

    def begin(self, prompts: Sequence[list[int]], sampling: Sampling) -> Callable[[], list[Completion]]:
        """Begin to answer with the weights of the moment; all processes must call what is returned."""
        wait = self.engine.begin(prompts, sampling) if self.engine else None
        return lambda: current_ranks().from_first(wait() if wait else [])
