"""Answer lm-eval's requests with one of our engines; every backend's model class shares this code.

A backend's class is `class X(Answering, StockClass)`, where `StockClass` is lm-eval's own. It calls `open_on`, or opens a
checkpoint and calls `answer_with`. All but `generate_until` and the chat template is the stock class's code. A prompt that
would be cut to fit the context is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import postprocess_generated_text

from harness.config.models import Chat
from harness.engines.engine import CheckpointEngine, Engine, Sampling, answer_all
from harness.errors import TaskError
from harness.lm.chat import Renderer
from harness.lm.checkpoints import context_of, read_renderer
from harness.lm.rollouts import Finish
from harness.lmeval.generation_settings import KNOWN


@dataclass(frozen=True)
class Answer:
    """One answer: its text up to a stop string, how it ended, and its number of tokens, stop token included."""

    text: str
    finish: Finish
    tokens: int


class Answering:
    """`generate_until` on an `Engine`; a base class that comes before one of lm-eval's model classes.

    - `answers`: all answers by (task, document index), in the order they were drawn; lm-eval gets each item's first.
    - `made_with`: the backend's settings that decide the answers, for the generation key.
    - `beyond_context`: how many tokens more than `max_length` a scored text may have, see `BackendSettings`.
    """

    max_length: int
    beyond_context: int

    def open_on(
        self,
        engine: CheckpointEngine,
        checkpoint: Path,
        weights: str,
        chat: Chat,
        batch_size: int,
        seed: int,
        on_task: Callable[[str], None],
    ) -> None:
        """Load a checkpoint's weights into an engine, answer with it, and set the attributes that the stock class reads.

        `weights` is the digest of the checkpoint. The stock class itself is not initialised. `on_task` gets a task's name once
        its answers are drawn.
        """
        TemplateLM.__init__(self)  # pyright: ignore
        engine.load(checkpoint, weights)
        renderer = read_renderer(checkpoint, chat)
        self.tokenizer: Any = renderer.tokenizer
        self._max_length = engine.backend.context(context_of(checkpoint))
        self.beyond_context = engine.backend.beyond_context
        self.add_bos_token = None
        made_with = {**engine.describe(), "batch_size": batch_size, "max_model_len": self._max_length}
        self.answer_with(engine, renderer, made_with, seed, on_task)

    def answer_with(
        self, engine: Engine, renderer: Renderer, made_with: dict[str, Any], seed: int, on_task: Callable[[str], None]
    ) -> None:
        """Set what draws the answers; `seed` decides every draw, so lm-eval's random state has no effect."""
        self.engine, self.renderer = engine, renderer
        self.made_with = {**made_with, "tokenizer": renderer.fingerprint()}
        self.seed, self.on_task = seed, on_task
        self.answers: dict[tuple[str, int], list[Answer]] = defaultdict(list)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text, rendered as in training."""
        return self.renderer.render(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return each request's first answer; requests of one task with equal settings are decoded together.

        Tasks never share a batch, so that a task's answers do not depend on what else is evaluated.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[f"{request.task_name} {sorted(request.args[1].items())}"].append(index)
        first: dict[int, str] = {}
        for indices in groups.values():
            settings = requests[indices[0]].args[1]
            first.update(zip(indices, self._answer([requests[i] for i in indices], settings), strict=True))
            self.on_task(requests[indices[0]].task_name)
        return [first[index] for index in range(len(requests))]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations as the stock class does; raises `TaskError` where it would cut a context from the left."""
        self._asked_by = {tuple(request.args): str(request.task_name) for request in requests}
        stock: Any = super()
        return stock.loglikelihood(requests, disable_tqdm=True)  # other progress bars would be drawn over ours

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts as the stock class does."""
        stock: Any = super()
        return stock.loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        # Requests without text are the windows of a perplexity, which fit the context.
        whole = [(len(context) + len(rest), text) for text, context, rest in requests if text is not None]
        longest, text = max(whole, key=lambda each: each[0], default=(0, ("", "")))
        if longest > (room := self.max_length + self.beyond_context):
            raise TaskError(
                f"task {self._asked_by[text]}: its longest prompt with a continuation has {longest} tokens and would be cut "
                f"to the {room} that a context of {self.max_length} scores; ask for fewer few-shot examples, or take a model "
                "with more context"
            )
        stock: Any = super()
        return stock._loglikelihood_tokens(requests, *args, **{**kwargs, "disable_tqdm": True})

    def _answer(self, requests: list[Any], settings: dict[str, Any]) -> list[str]:
        """Draw all answers to one task's requests in one call of the engine; return each item's first."""
        task, n = str(requests[0].task_name), int(settings.get("n", 1))
        sampling = sampling_of(settings, task, self.renderer.stop_ids, self.seed)
        prompts = self.renderer.encode_prompts([request.args[0] for request in requests])
        self._refuse_truncation(prompts, sampling, task)
        done = answer_all(self.engine, [prompt for prompt in prompts for _ in range(n)], sampling)
        drawn = [
            Answer(up_to(self.renderer.decode(one.tokens), sampling.stop_strings), one.finish, len(one.tokens))
            for one in done
        ]
        for index, request in enumerate(requests):
            self.answers[task, int(request.doc_id or 0)] += drawn[index * n : (index + 1) * n]
        return [answer.text for answer in drawn[::n]]

    def _refuse_truncation(self, prompts: list[list[int]], sampling: Sampling, task: str) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if longest + sampling.max_new_tokens > self.max_length:
            raise TaskError(
                f"task {task}: the longest prompt has {longest} tokens and its answer may take {sampling.max_new_tokens}, "
                f"more than the model's context of {self.max_length}; lower max_gen_toks or take a model with more context"
            )


def sampling_of(settings: Mapping[str, Any], task: str, stop_ids: tuple[int, ...], seed: int) -> Sampling:
    """Return a task's generation settings as `Sampling`; raises `TaskError` for a setting that no engine here knows."""
    if unknown := sorted(set(settings) - KNOWN):
        raise TaskError(f"task {task}: generation_kwargs {unknown} are not known; expected {sorted(KNOWN)}")
    return Sampling(
        max_new_tokens=settings["max_gen_toks"],
        temperature=settings["temperature"] if settings.get("do_sample", settings["temperature"] > 0) else 0.0,
        top_p=settings.get("top_p", 1.0),
        top_k=max(0, settings.get("top_k", 0)),  # -1 takes all tokens too
        stop_ids=stop_ids,
        stop_strings=stop_strings(settings),
        seed=seed,
    )


def stop_strings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the strings that end an answer under a task's generation settings."""
    until = settings["until"]
    return (until,) if isinstance(until, str) else tuple(until)


def up_to(text: str, stops: Sequence[str]) -> str:
    """Return the part of a text that a grader reads: all before the first stop string."""
    return postprocess_generated_text(text, list(stops), None)
