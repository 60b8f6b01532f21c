"""The setting of the benchmarks: a suite's student, teacher and first task, as its first stage trains them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from adapters.loop.training_loop import prompt_batches
from harness.adapter import StageContext
from harness.config.load import load_suite
from harness.config.models import Model, Pretrained, Scratch
from harness.config.suite import Suite
from harness.engines.engine import Sampling
from harness.engines.hf import HFEngine
from harness.errors import ConfigError
from harness.lm.checkpoints import Loaded, load_checkpoint
from harness.lm.logprobs import StudentForward
from harness.lm.precision import suit_attention
from harness.lm.rollouts import Example
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from harness.teachers.local import LocalTeacher


@dataclass(frozen=True)
class Setting:
    """Student and teacher in memory, and a stage of one step that does not count and `steps` that do."""

    student: Loaded
    teacher: Loaded
    context: StageContext

    @property
    def precision(self) -> str:
        """The precision of forward and backward passes; the weights are float32."""
        return self.context.training.autocast or "float32"

    @property
    def steps(self) -> int:
        """The steps that count: all but the first."""
        return self.context.training.steps - 1

    def prompts(self, seed: int) -> list[Example]:
        """Return the prompts of a stage with this seed, batch after batch; the uncounted step's come first."""
        batches = islice(prompt_batches(self.with_seed(seed)), self.steps + 1)
        return [example for batch in batches for example in batch]

    def with_seed(self, seed: int) -> StageContext:
        """Return the stage with another seed: other prompts, other responses."""
        return replace(self.context, seed=seed)

    def sampling(self, seed: int) -> Sampling:
        """Return how rollouts are drawn."""
        training = self.context.training
        return Sampling(
            training.max_new_tokens, training.temperature, stop_ids=self.context.renderer.stop_ids, seed=seed
        )


def make_setting(name: str, steps: int, autocast: Literal["bfloat16"] | None) -> Setting:
    """Return the first stage of a suite, with `steps` counted steps; models come from the cache or are built."""
    suite = load_suite(name, [f"training.autocast={autocast or 'null'}"])
    if not isinstance(suite.teacher, Pretrained | Scratch):
        raise ConfigError(f"suite {suite.name} has no teacher that is a model of this process; the benchmark needs one")
    library = TaskLibrary(suite.include, suite.data)
    student, teacher = _loaded(suite.student, library), _loaded(suite.teacher, library)
    for loaded in (student, teacher):
        suit_attention(loaded.model, autocast)
    return Setting(student, teacher, _context(suite, library, student, teacher, steps))


def _context(suite: Suite, library: TaskLibrary, student: Loaded, teacher: Loaded, steps: int) -> StageContext:
    stage = suite.stages[0]
    # A rate of nearly zero keeps the policy, so that all methods get responses of the same lengths in every step.
    optimizer = stage.training.optimizer.model_copy(update={"lr": 1e-12})
    changes = {"steps": steps + 1, "optimizer": optimizer, "num_generations": 1}
    training = stage.training.model_copy(update=changes)
    tasks = [library.load(task) for task in stage.trains]
    return StageContext(
        student=StudentForward(student.model),
        teacher=LocalTeacher(teacher.model, teacher.renderer.tokenizer, student.renderer.tokenizer),
        engine=HFEngine(student.model, student.renderer.tokenizer, training.generation_batch),
        renderer=student.renderer,
        tasks={task.name: task for task in tasks},
        examples=[e for task in tasks for e in task.training_examples(student.renderer, training.train_items)],
        training=training,
        seed=0,
        device="cpu",
        folder=Path(),
        log=lambda _: None,
        warn=lambda _: None,
    )


def _loaded(spec: Model, library: TaskLibrary) -> Loaded:
    return load_checkpoint(checkpoint_of(spec, 0, library), spec, "cpu")
