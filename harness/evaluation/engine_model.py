"""lm-eval's view of a `CheckpointEngine`: answers and likelihoods of a checkpoint from any backend.

Tokenisation and the windows of a perplexity are those of lm-eval's `hf` class. The stock class is not opened, because it
would load the model; what its methods read is set here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from harness.config.models import Chat
from harness.engines.base import CheckpointEngine
from harness.evaluation.answering import Answering
from harness.lm.checkpoints import context_of, read_renderer

# lm-eval registers the class through an untyped decorator, which hides its members from a type checker.
StockHFLM: Any = HFLM


class EngineScores(StockHFLM):
    """Likelihoods from the engine's log-probabilities of prompts."""

    def _loglikelihood_tokens(self, requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
        prompts = [[*context, *continuation] for _, context, continuation in requests]
        scored = self.model.prompt_logprobs(prompts)
        starts = [len(context) for _, context, _ in requests]
        return [
            _likelihood(prompt[start:], at[start:]) for prompt, at, start in zip(prompts, scored, starts, strict=True)
        ]


class EngineModel(Answering, EngineScores):
    """A checkpoint on an engine, see `Answering`."""

    beyond_context = 0  # the whole sequence is read

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
        TemplateLM.__init__(self)  # pyright: ignore[reportAbstractUsage]
        engine.load(checkpoint, weights)
        self._model = engine
        renderer = read_renderer(checkpoint, chat)
        self.tokenizer: Any = renderer.tokenizer
        self.batch_size_per_gpu, self._max_length = batch_size, engine.backend.context(context_of(checkpoint))
        self.add_bos_token = self.custom_prefix_token_id = None
        made_with = {**engine.describe(), "batch_size": batch_size, "max_model_len": self._max_length}
        self.answer_with(engine, renderer, made_with, seed, on_task)

    @property
    def model(self) -> Any:
        """The engine."""
        return self._model

    def get_model_info(self) -> dict[str, Any]:
        """Return nothing: the stock class describes a model in this process."""
        return {}


def _likelihood(tokens: list[int], scored: list[dict[int, float] | None]) -> tuple[float, bool]:
    """Return a continuation's log-probability, and whether each of its tokens is the most probable one."""
    total, greedy = 0.0, True
    for token, logprobs in zip(tokens, scored, strict=True):
        assert logprobs is not None, "the first position of a prompt, which has a context before it here"
        total += logprobs[token]
        greedy &= logprobs[token] >= max(logprobs.values())
    return total, greedy
