"""lm-eval's `vllm` model class on the engine that also generates rollouts and loads the checkpoint's weights.

Likelihoods are computed by lm-eval's code from vLLM's log-probabilities of prompts. The stock class is not initialised,
because it would start a second engine; the attributes that its methods read are set here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.models import vllm_causallms

from harness.config.models import Chat
from harness.engines.engine import CheckpointEngine
from harness.evaluation.answering import Answering

# lm-eval registers the class through an untyped decorator, which hides its members from a type checker.
StockVLLM: Any = vllm_causallms.VLLM


@dataclass(frozen=True)
class ScoredPrompt:
    """The part of a vLLM output that lm-eval reads."""

    prompt_logprobs: list[dict[int, float] | None]


class HarnessVLLM(Answering, StockVLLM):
    """A checkpoint as lm-eval's `vllm` model, see `Answering`."""

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
        self.model, self.batch_size = engine, batch_size
        self.custom_prefix_token_id = self.enable_thinking = self.think_end_token = None
        self.data_parallel_size, self.chat_template_args = 1, {}
        self.open_on(engine, checkpoint, weights, chat, batch_size, seed, on_task)

    def _model_generate(self, requests: Sequence[list[int]], generate: bool = False, **_: Any) -> list[ScoredPrompt]:
        """Return the log-probabilities of prompts; answers are drawn by `Answering`."""
        assert not generate, "answers are drawn by Answering"
        return [ScoredPrompt(found) for found in self.model.prompt_logprobs(requests)]
