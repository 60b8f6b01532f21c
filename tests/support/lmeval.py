"""Made-up tasks, and what lm-eval sends to a model for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from harness.config.models import Chat
from harness.lm.chat import Renderer
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer
from tests.support.models import write_task


class Listener(LM):
    """An lm-eval model that answers nothing and remembers what it was sent."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__()
        self.renderer = renderer
        self.requests: list[Any] = []

    @property
    def tokenizer_name(self) -> str:
        return "bytes"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "chatml"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.renderer.render(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.requests += requests
        return [""] * len(requests)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def plain_renderer() -> Renderer:
    """Return the renderer of a base model: no chat template."""
    return Renderer(byte_tokenizer(), Chat())


def made_up(folder: Path, **changes: Any) -> Task:
    """Return a task written for one test."""
    write_task(folder, **changes)
    return TaskLibrary([folder]).load("made_up")
