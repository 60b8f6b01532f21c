"""The contract of a generation engine: token ids in, responses out, sampled from seeds that the call gives."""

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
    """How to decode. Temperature 0 is greedy; top_k 0 and top_p 1 are off. Draws depend only on `seed`."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """A response's token ids, stop token included, and whether it ended by itself (`stop`) or at its budget (`length`).

    `logprobs` are the log-probabilities, in nats, with which the ids were drawn; None if the engine does not report them.
    """

    tokens: list[int]
    finish: Finish
    logprobs: tuple[float, ...] | None = None


class Engine(Protocol):
    """Generates one completion for each prompt, in the order of the prompts."""

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
    """An engine with its own weights: those of a checkpoint until `load` replaces them."""

    @property
    def backend(self) -> Backend:
        """The backend that started it."""
        ...

    def load(self, checkpoint: Path, weights: str | None = None) -> None:
        """Load a checkpoint's weights; do nothing if `weights` is the digest of those that it already has."""
        ...

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[dict[int, float] | None]]:
        """Return for each position of each prompt log-probabilities by token id, in nats, at temperature 1.

        They include the prompt's own token and the most probable one; the first position is None.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what determines the answers, such as name, version, device and dtype; part of an evaluated cell's key."""
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...
