"""lm-eval's `hf` model class with our generation engine inside, so that finish reasons and token counts are kept.

Everything but `generate_until` and the chat template is lm-eval's own. Oracle: the stock class gives the same greedy
answers (tests/test_evaluate.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text

from harness.chat import Renderer
from harness.config import Chat
from harness.engines.base import Sampling
from harness.engines.hf import HFEngine
from harness.errors import TaskError
from harness.rollouts import Finish

# lm-eval registers the class through an untyped decorator, which hides its members from a type checker.
StockHFLM: Any = HFLM
KNOWN_SETTINGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}


@dataclass(frozen=True)
class Ending:
    """How one answer ended and how many tokens it took, stop token included."""

    finish: Finish
    tokens: int


class HarnessHFLM(StockHFLM):
    """A checkpoint as lm-eval's `hf` model; `endings` holds each answer's ending by (task, document index)."""

    def __init__(
        self,
        checkpoint: Path,
        chat: Chat,
        *,
        device: str,
        dtype: str,
        batch_size: int,
        seed: int,
        on_task: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(pretrained=str(checkpoint), device=device, dtype=dtype, batch_size=batch_size)
        self.renderer = Renderer(self.tokenizer, chat)
        self.engine = HFEngine(self.model, self.tokenizer, batch_size)
        self.seed = seed
        self.on_task = on_task
        self.endings: dict[tuple[str, int], list[Ending]] = defaultdict(list)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation as training does."""
        return self.renderer.render(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer requests; those of one task with equal settings are decoded together.

        Tasks never share a batch, so that a task's answers do not depend on what else is evaluated.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[f"{request.task_name} {sorted(request.args[1].items())}"].append(index)
        answers: dict[int, str] = {}
        for indices in groups.values():
            settings = requests[indices[0]].args[1]
            answers.update(zip(indices, self._answer([requests[i] for i in indices], settings), strict=True))
            self.on_task(requests[indices[0]].task_name)
        return [answers[index] for index in range(len(requests))]

    def _answer(self, requests: list[Any], settings: dict[str, Any]) -> list[str]:
        sampling = self._sampling(settings, requests[0].task_name)
        prompts = [self.renderer.encode_prompt(request.args[0]) for request in requests]
        self._refuse_truncation(prompts, sampling, requests[0].task_name)
        texts: list[str] = []
        for request, done in zip(requests, self.engine.generate(prompts, sampling), strict=True):
            self.endings[str(request.task_name), int(request.doc_id or 0)].append(Ending(done.finish, len(done.tokens)))
            texts.append(
                postprocess_generated_text(self.renderer.decode(done.tokens), list(sampling.stop_strings), None)
            )
        return texts

    def _sampling(self, settings: dict[str, Any], task: str | None) -> Sampling:
        if unknown := sorted(set(settings) - KNOWN_SETTINGS):
            raise TaskError(
                f"task {task}: generation_kwargs {unknown} are not known; expected {sorted(KNOWN_SETTINGS)}"
            )
        until = settings["until"]
        return Sampling(
            max_new_tokens=settings["max_gen_toks"],
            temperature=settings["temperature"] if settings.get("do_sample", settings["temperature"] > 0) else 0.0,
            top_p=settings.get("top_p", 1.0),
            top_k=settings.get("top_k", 0),
            stop_ids=self.renderer.stop_ids,
            stop_strings=tuple([until] if isinstance(until, str) else until),
            seed=self.seed,
        )

    def _refuse_truncation(self, prompts: list[list[int]], sampling: Sampling, task: str | None) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if longest + sampling.max_new_tokens > self.max_length:
            raise TaskError(
                f"task {task}: the longest prompt has {longest} tokens and its answer may take {sampling.max_new_tokens}, "
                f"more than the model's context of {self.max_length}; lower max_gen_toks or take a model with more context"
            )
