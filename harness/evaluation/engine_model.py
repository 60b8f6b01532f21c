"""A `CheckpointEngine` as a model of lm-eval: answers and likelihoods of a checkpoint from any backend.

Tokenisation and the windows of a perplexity are those of lm-eval's `hf` class. That class is not initialised, because it
would load the model; the attributes that its methods read are set here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from harness.config.models import Chat
from harness.engines.engine import CheckpointEngine
from harness.evaluation.answering import Answering

# lm-eval registers the class through an untyped decorator, which hides its members from a type checker.
StockHFLM: Any = HFLM


class EngineScores(StockHFLM):
    """Likelihoods from the engine's log-probabilities of prompts."""

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in windows that the engine accepts; the stock class's windows have `max_length` + 1 tokens."""
        context: int = self._max_length
        self._max_length = context + self.beyond_context - 1
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._max_length = context

    def _loglikelihood_tokens(self, requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
        prompts = [[*context, *continuation] for _, context, continuation in requests]
        scored = self.model.prompt_logprobs(prompts)
        starts = [len(context) for _, context, _ in requests]
        return [
            _likelihood(prompt[start:], at[start:]) for prompt, at, start in zip(prompts, scored, starts, strict=True)
        ]


class EngineModel(Answering, EngineScores):
    """A checkpoint on an engine, see `Answering`."""

    def __init__(
        self,
        engine: CheckpointEngine,
        checkpoint: Path,
        weights: str,
        chat: Chat,
        *,
        batch_size: int,
        seed: int,
        on_task: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model, self.batch_size_per_gpu, self.custom_prefix_token_id = engine, batch_size, None
        self.open_on(engine, checkpoint, weights, chat, batch_size, seed, on_task)

    @property
    def model(self) -> Any:
        """The engine."""
        return self._model

    def get_model_info(self) -> dict[str, Any]:
        """Return nothing; the stock method describes a model in this process."""
        return {}


def _likelihood(tokens: list[int], scored: list[dict[int, float] | None]) -> tuple[float, bool]:
    """Return a continuation's log-probability, and whether each of its tokens is the most probable one."""
    total, greedy = 0.0, True
    for token, logprobs in zip(tokens, scored, strict=True):
        assert logprobs is not None, "the first position of a prompt, which has a context before it here"
        total += logprobs[token]
        greedy &= logprobs[token] >= max(logprobs.values())
    return total, greedy
