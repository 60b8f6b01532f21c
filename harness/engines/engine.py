"""What a generation engine promises: token ids in, responses out, drawn from its own random stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.engines.backend import Backend
from harness.errors import RunError
from harness.lm.rollouts import Finish


@dataclass(frozen=True)
class Sampling:
    """How to decode; temperature 0 is greedy. Draws depend only on `seed`, never on global generators."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """A response's token ids, stop token included, and whether it ended by itself (`stop`) or by its budget (`length`).

    `logprobs` are the log-probabilities, in nats, with which the ids were drawn; None for an engine that does not report them.
    """

    tokens: list[int]
    finish: Finish
    logprobs: tuple[float, ...] | None = None


class Engine(Protocol):
    """Generates one completion for each prompt, in the prompts' order."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions of `prompts`, lists of token ids; equal prompts in one call get independent draws."""
        ...


def answer_all(engine: Engine, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
    """Return an engine's completions, one for each prompt; raises `RunError` where it returns anything else."""
    found: Any = engine.generate(prompts, sampling)
    kinds = Counter(type(each).__name__ for each in found) if isinstance(found, list) else type(found).__name__
    if kinds != Counter(Completion=len(prompts)):
        raise RunError(
            f"{type(engine).__name__}.generate returned {_count(kinds)}, expected a list of {len(prompts)} Completion, one "
            "for each prompt in the prompts' order"
        )
    return found


def _count(kinds: Counter[str] | str) -> str:
    if isinstance(kinds, str):
        return kinds
    return "a list of " + (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "0")


class CheckpointEngine(Engine, Protocol):
    """An engine with its own weights: those of a checkpoint, until `load` replaces them."""

    @property
    def backend(self) -> Backend:
        """The backend that started it."""
        ...

    def load(self, checkpoint: Path, weights: str | None = None) -> None:
        """Take a checkpoint's weights; with the digest `weights` of those that it already has, do nothing."""
        ...

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[dict[int, float] | None]]:
        """Return, at each position of each prompt, log-probabilities by token id, at temperature 1.

        They hold at least the prompt's own token and the most probable one; the first position has none.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the answers: name, version, device, dtype and such; part of a cell's key."""
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...
