"""The adapter under test, and the small stage that it trains: scripted answers, a teacher, an earlier task.

Vocabulary, weights and answers are fixed, and so small that a dense float64 reference is cheap. The pad token is the stop
token, a prompt contains it, and responses contain id 0, so masks that are computed from ids instead of lengths are wrong.
"""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from adapters.conformance.outcomes import ConformanceError, DoesNotApply, NotInstalled
from adapters.loop.training_loop import LoopAdapter
from adapters.wrappers.wrapper import Wrapper
from harness.adapter import Adapter, StageContext, StageResult
from harness.config.models import Chat
from harness.config.training import Training
from harness.engines.engine import Completion, Sampling
from harness.engines.hf import HFEngine
from harness.errors import ConfigError
from harness.lm.chat import Renderer
from harness.lm.logprobs import StudentForward
from harness.lm.rollouts import Example
from harness.lm.seeding import preserved_random_state, seed_global_generators
from harness.teachers.local import LocalTeacher

VOCABULARY, STOP, UNKNOWN = 40, 1, 2
Pairs = Sequence[tuple[list[int], list[int]]]
PAIRS: Pairs = (
    ([3, 4, 5], [6, 7, STOP]),
    ([8], [9, STOP]),
    ([5, STOP, 4, STOP, 5], [12]),
    ([9, 10], [14, 15, 0, 17, STOP]),
    ([11, 0, 13], [STOP]),
    ([7, 7], [5, 6, 0, 8]),
)
EARLIER: Pairs = (([20, 21], [22, 23, STOP]), ([24], [25, STOP]))


@dataclass(frozen=True)
class AdapterUnderTest:
    """An adapter, a folder for files of its trainer, and training settings of every stage."""

    adapter: Adapter
    folder: Path
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def inner(self) -> Adapter:
        """The adapter that trains, inside all wrappers."""
        adapter = self.adapter
        while isinstance(adapter, Wrapper):
            adapter = adapter.inner
        return adapter

    @property
    def looped(self) -> LoopAdapter:
        """The adapter that trains, if it uses the shared loop; raises `DoesNotApply` for another one."""
        if not isinstance(self.inner, LoopAdapter):
            raise DoesNotApply("it has its own trainer, whose gradients and batches cannot be read here")
        return self.inner

    @property
    def method(self) -> LoopAdapter:
        """The adapter itself, if its loss per token is known; raises `DoesNotApply` for wrappers and other trainers."""
        if isinstance(self.adapter, Wrapper):
            raise DoesNotApply("it wraps another adapter, whose loss is checked under that adapter's own name")
        return self.looped

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary, with room for the method's top K."""
        return (
            max(VOCABULARY, self.inner.teacher_request.top_k + 8) if isinstance(self.inner, LoopAdapter) else VOCABULARY
        )

    def stage(
        self,
        pairs: Pairs = PAIRS,
        *,
        teacher_seed: int = 1,
        reference_seed: int = 2,
        dtype: torch.dtype = torch.float64,
        scripted: bool = True,
        **training: Any,
    ) -> StageContext:
        """Return a stage over `pairs` of prompt and answer; `scripted` answers are those, else the student answers.

        The student's weights have seed 0. By default the reference has another seed, so that its part in a loss is visible.
        """
        renderer = Renderer(word_tokenizer(self.vocabulary), Chat())
        student, teacher, reference = (
            small_model(self.vocabulary, seed, dtype) for seed in (0, teacher_seed, reference_seed)
        )
        script, needs = Script(pairs), self.adapter.requirements
        own, past = _examples("now", pairs, renderer), _examples("earlier", EARLIER, renderer)
        tasks: list[Any] = [SmallTask("now"), SmallTask("earlier")]
        return StageContext(
            student=StudentForward(student),
            teacher=None if needs.teacher == "none" else LocalTeacher(teacher, renderer.tokenizer, renderer.tokenizer),
            engine=script if scripted else HFEngine(student, renderer.tokenizer),
            renderer=renderer,
            tasks={"now": tasks[0]},
            examples=own,
            training=budget(self.adapter, len(own), {**self.training, **training}),
            seed=5,
            device="cpu",
            folder=Path(tempfile.mkdtemp(dir=self.folder)),
            log=lambda _: None,
            warn=lambda _: None,
            reference=LocalTeacher(reference, renderer.tokenizer, renderer.tokenizer) if needs.reference else None,
            teacher_engine=script if scripted else HFEngine(teacher, renderer.tokenizer),
            past_tasks={"earlier": tasks[1]},
            past=past,
        )


def train_small_stage(adapter: Adapter, ctx: StageContext) -> StageResult:
    """Train one stage with all random generators seeded as in a run, and restore their states."""
    with preserved_random_state():
        seed_global_generators(ctx.seed)
        return adapter.train_stage(ctx)


def budget(adapter: Adapter, prompts: int, settings: dict[str, Any]) -> Training:
    """Return a budget that the adapter accepts, with as few generations of each prompt as possible.

    Raises `ConformanceError` for an adapter that refuses all, and `NotInstalled` where a library is missing.
    """
    refused = ""
    for generations in (1, 2, 4, 8):
        raw = {"steps": 1, "prompts_per_step": prompts, "num_generations": generations, "max_new_tokens": 8, **settings}
        training = Training.model_validate({**raw, "optimizer": {"lr": 1e-3}})
        try:
            adapter.refuse(training)
        except ConfigError as error:
            refused = str(error)
        else:
            return training
    if "not installed" in refused:
        raise NotInstalled(refused)
    raise ConformanceError(
        f"it refuses {prompts} prompts with 1, 2, 4 and 8 generations each ({refused}); accept one of these budgets"
    )


def small_model(vocabulary: int, seed: int, dtype: torch.dtype) -> Any:
    """Return a random decoder with peaked predictions that computes in `dtype` throughout."""
    return copy.deepcopy(_random_model(vocabulary, seed)).to(dtype)


@cache
def _random_model(vocabulary: int, seed: int) -> Any:
    """Return the model that `small_model` copies; drawing its weights takes longer than most checks."""
    config = GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.4, bos_token_id=None, eos_token_id=STOP, pad_token_id=STOP,
    )  # fmt: skip
    with preserved_random_state():
        seed_global_generators(seed)
        return GPTNeoXForCausalLM(config)


def word_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer whose words are the token ids as text; its pad token is its stop token."""
    tokenizer: Any = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token=str(UNKNOWN)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=str(STOP), pad_token=str(STOP))


@dataclass
class Script:
    """Answers each prompt with its own responses, and with its neighbours' when it is asked again."""

    pairs: Pairs
    asked: dict[tuple[int, ...], int] = field(default_factory=lambda: defaultdict[tuple[int, ...], int](int))

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return the scripted responses; one without a stop token at its end counts as cut off."""
        return [self._complete(tuple(prompt), sampling) for prompt in prompts]

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts of both tasks."""
        return [prompt for prompt, _ in (*self.pairs, *EARLIER)]

    def responses(self, prompt: Sequence[int]) -> list[list[int]]:
        """Return the responses to a prompt, in the order in which repeated requests get them."""
        known = [*self.pairs, *EARLIER]
        first = next((i for i, (p, _) in enumerate(known) if p == list(prompt)), 0)
        return [known[(first + i) % len(known)][1] for i in range(len(known))]

    def _complete(self, prompt: tuple[int, ...], sampling: Sampling) -> Completion:
        answers = self.responses(prompt)
        tokens = answers[self.asked[prompt] % len(answers)][: sampling.max_new_tokens]
        self.asked[prompt] += 1
        return Completion(list(tokens), "stop" if tokens and tokens[-1] in sampling.stop_ids else "length")


class SmallTask:
    """A task over number words, graded by the share of even numbers in the answer."""

    metric = "even"
    generation: ClassVar[dict[str, Any]] = {"until": []}

    def __init__(self, name: str) -> None:
        self.name, self.task = name, self

    def prompt_text(self, doc: dict[str, Any]) -> str:
        """Return an item's question."""
        return doc["prompt"]

    def render_question(self, doc: dict[str, Any], question: str, renderer: Renderer) -> str:
        """Return the question itself, because this task has no template."""
        return question

    def training_target(self, doc: dict[str, Any]) -> str:
        """Return an item's reference answer."""
        return doc["target"]

    def grade(self, doc: dict[str, Any], response: str) -> dict[str, float]:
        """Return the share of even numbers."""
        words = response.split()
        return {"even": sum(int(word) % 2 == 0 for word in words) / max(1, len(words))}


def _examples(task: str, pairs: Pairs, renderer: Renderer) -> list[Example]:
    return [
        Example(task, f"{task}{i}", {"prompt": renderer.decode(p), "target": renderer.decode(t)}, list(p), list(t))
        for i, (p, t) in enumerate(pairs)
    ]
