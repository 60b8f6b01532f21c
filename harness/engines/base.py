"""What a generation engine promises: token ids in, responses out, from a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.lm.rollouts import Finish


@dataclass(frozen=True)
class Sampling:
    """How to decode; temperature 0 is greedy. `seed` alone decides what is drawn, global generators are not used."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """A response's ids, stop token included, and whether it ended by itself (`stop`) or by its budget (`length`).

    `logprobs` are the ids' log-probabilities as they were drawn, where an engine tells them.
    """

    tokens: list[int]
    finish: Finish
    logprobs: tuple[float, ...] | None = None


class Engine(Protocol):
    """Generates one completion for each prompt, in the prompts' order."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions of `prompts`, lists of token ids; equal prompts in one call are drawn independently."""
        ...
