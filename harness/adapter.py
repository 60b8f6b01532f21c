"""The contract that trainer adapters implement, and their registry.

An adapter is a frozen pydantic model, whose fields are its options, with a method `train_stage`. Other packages register
theirs under the entry point group `harness.adapters`; nothing here imports one by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import ConfigDict, ValidationError, model_validator

from harness.config import plugins
from harness.config.base import Strict
from harness.config.explain import explain
from harness.config.run_spec import PlannedStage, RunSpec
from harness.config.suite import AdapterEntry
from harness.config.teacher_settings import Needs
from harness.config.training import Optimizer, Training
from harness.errors import ConfigError
from harness.rundir.schema import Source

if TYPE_CHECKING:
    # For types alone: reading a suite or listing adapters must not load torch.
    from torch import Tensor, nn

    from harness.engines.engine import Engine
    from harness.lm.chat import Renderer
    from harness.lm.logprobs import StudentForward
    from harness.lm.optimiser import Updater
    from harness.lm.rollouts import Example, Rollout
    from harness.lmeval.task import Task
    from harness.rundir.training.rollout_log import Keep
    from harness.rundir.training.snapshots import Snapshots
    from harness.teachers.local import LocalTeacher
    from harness.teachers.teacher import Teacher

    TokenPenalty = Callable[[Tensor, Tensor], Tensor]
    WeightPenalty = Callable[[nn.Module], Tensor]
    UpdaterFactory = Callable[[nn.Module, Optimizer, int], Updater]

GROUP = "harness.adapters"


@dataclass(frozen=True)
class Penalties:
    """What wrappers add to a method's loss.

    Each `token` penalty maps the log-probabilities (N,) of the response tokens, under the student and under the stage's start,
    to losses (N,), which are averaged like the method's own. Each `weight` penalty maps the student to a scalar that is added
    once per optimiser update.
    """

    token: tuple[TokenPenalty, ...] = ()
    weight: tuple[WeightPenalty, ...] = ()

    def __add__(self, other: Penalties) -> Penalties:
        return Penalties(self.token + other.token, self.weight + other.weight)


@dataclass(frozen=True)
class Requirements:
    """What an adapter needs besides the student.

    - `teacher`: what the teacher returns. `none`; `sampled`, the log-probability of each response token; `top_k`, also those
      of its most probable tokens; `full`, those of the whole vocabulary; `generate`, responses.
    - `reference`: whether a copy of the stage's start, frozen unless the adapter sets `moves_reference`, scores responses.
    - `top_k`: how many most probable tokens are needed at each position; the vocabulary must have as many.
    - `entropy`: whether the entropy of the teacher's whole distribution is needed.
    """

    teacher: Needs = "none"
    reference: bool = False
    top_k: int = 0
    entropy: bool = False


@dataclass(frozen=True)
class Capabilities:
    """What wrappers, manifests and reports need to know about a training method.

    - `trains_on`: whose responses it trains on; empty for a control, which trains on nothing. The entropy and truncation in a
      step log describe the student's own answers only where this is `{"student"}`.
    - `takes_penalties`: it adds `ctx.penalties` to its loss.
    - `replaces_weights`: it trains parameters in place of those of `ctx.student`, such as low-rank factors.
    - `needs_whole_weights`: it reads or writes the model's own parameters, so nothing can take their place.
    - `moves_reference`: it changes the weights of `ctx.reference`, which then no longer is the stage's start.
    - `distributes`: several processes may call its `train_stage` at once and train one student together.
    - `takes_stale`: it supports `training.staleness: 1` and corrects for responses that an older student drew.
    """

    trains_on: frozenset[Source] = frozenset({"student"})
    takes_penalties: bool = False
    replaces_weights: bool = False
    needs_whole_weights: bool = False
    moves_reference: bool = False
    distributes: bool = False
    takes_stale: bool = False


def _no_snapshots() -> Snapshots:
    from harness.rundir.training.snapshots import NO_SNAPSHOTS

    return NO_SNAPSHOTS


def _keep_nothing() -> Keep:
    from harness.rundir.training.rollout_log import keep_nothing

    return keep_nothing


def _updater() -> UpdaterFactory:
    from harness.lm.optimiser import Updater

    return Updater


def _measure_nothing(steps: int) -> None:
    """Do nothing: the suite asks for no learning curve."""


def _never(_: int) -> bool:
    """Return False: no point of a learning curve is due."""
    return False


@dataclass(frozen=True)
class StageContext:
    """Everything that an adapter may use in one stage.

    Models: `student`, whose weights are trained; `engine`, which samples from it; `teacher`, `teacher_engine` and `reference`
    (a copy of the stage's start, frozen unless the adapter sets `moves_reference`) where the adapter requires them;
    `renderer`, the tokenizer and its chat template.

    Data: `tasks` that the stage trains, by name, and `examples`, their training items in order; `past_tasks` and `past` are
    the same for the tasks that earlier stages trained and this one does not. `shares` is the share of the prompts that each
    task gets; empty means equal shares.

    Budget: `training`; `seed` of this run and stage; `device`; `penalties`, which wrappers add to the loss; `make_updater`,
    which builds the optimiser from a module, its settings and the number of updates.

    Record: `log` writes one mapping per training step to the step log; `warn` shows the user a sentence; `measures` returns
    whether a point of the learning curve is due after a number of steps, and `measure`, called with that number, scores it
    where it is; `snapshots` keeps the state of an unfinished stage; `keep` writes a step's rollouts to the rollout log;
    `folder` is the stage's own, for files that a trainer writes.
    """

    student: StudentForward
    teacher: Teacher | None
    engine: Engine
    renderer: Renderer
    tasks: Mapping[str, Task]
    examples: list[Example]
    training: Training
    seed: int
    device: str
    folder: Path
    log: Callable[[dict[str, Any]], None]
    warn: Callable[[str], None]
    snapshots: Snapshots = field(default_factory=_no_snapshots)
    keep: Keep = field(default_factory=_keep_nothing)
    measure: Callable[[int], None] = _measure_nothing
    measures: Callable[[int], bool] = _never
    reference: LocalTeacher | None = None
    teacher_engine: Engine | None = None
    past_tasks: Mapping[str, Task] = field(default_factory=dict[str, "Task"])
    past: list[Example] = field(default_factory=list["Example"])
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    penalties: Penalties = Penalties()
    make_updater: UpdaterFactory = field(default_factory=_updater)

    def reward(self, rollout: Rollout) -> float:
        """Return a response's grade by its task's primary metric, 0..1.

        The evaluation's grader reads the same part of the text as in evaluation: up to the first stop string.
        """
        from harness.evaluation.answering import stop_strings, up_to

        task = self.tasks[rollout.example.task]
        answer = up_to(self.renderer.decode(rollout.response), stop_strings(task.generation))
        return float(task.grade(rollout.example.doc, answer)[task.metric])

    def with_demonstration(self, example: Example, template: str) -> list[int]:
        """Return the token ids of an item's prompt that shows the item's reference answer.

        `template` names {question} and {demonstration}. Filled in, it replaces the item's own question; the task's
        description, few-shot examples and `gen_prefix` stay.
        """
        task = self.tasks[example.task]
        question, answer = task.prompt_text(example.doc), task.training_target(example.doc)
        text = template.replace("{demonstration}", answer).replace("{question}", question)
        return self.renderer.encode_prompt(task.render_question(example.doc, text, self.renderer))


@dataclass(frozen=True)
class StageResult:
    """The result of a stage: the number of training steps that it took."""

    steps: int


class Adapter(Strict, ABC):
    """A training method: its fields are its options, and `train_stage` changes the student's weights in place.

    `formula`, `paper` and `deviation` go to docs/adapters.md: the loss of a response token, its source, and how the adapter
    differs from that source. `teacher_needs` is what the method needs from a teacher, see `Requirements`.
    """

    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    deviation: ClassVar[str] = ""
    model_config = ConfigDict(allow_inf_nan=True)  # a threshold that nothing reaches is infinite
    teacher_needs: ClassVar[Needs] = "none"

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a misspelled need, which the loop would ignore."""
        super().__pydantic_init_subclass__(**kwargs)
        if cls.teacher_needs not in get_args(Needs):
            raise ConfigError(
                f"{cls.__name__}.teacher_needs is {cls.teacher_needs!r}, expected one of {', '.join(get_args(Needs))}"
            )

    @model_validator(mode="after")
    def _refuse_nan(self) -> Self:
        """Refuse NaN: every comparison with NaN is false, so an option that is NaN would silently switch something off."""
        for name, value in self:
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{name} is NaN; expected a number")
        return self

    @property
    def requirements(self) -> Requirements:
        """What the method needs from a suite with these options."""
        return Requirements(self.teacher_needs)

    @property
    def capabilities(self) -> Capabilities:
        """What the method does with these options; by default it trains on the student's own responses."""
        return Capabilities()

    @property
    def updates(self) -> bool:
        """Whether the method changes weights; a control does not, and leaves no checkpoint."""
        return bool(self.capabilities.trains_on)

    def refuse(self, training: Training) -> None:
        """Raise `ConfigError` for a budget that this adapter cannot train with; called when a suite is checked."""

    @abstractmethod
    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train `ctx.student` on one stage, in place, within the budget `ctx.training`."""


def registered() -> dict[str, EntryPoint]:
    """Return the entry points of all registered adapters by name, those of other packages included."""
    return plugins.entry_points_of(GROUP)


def make_adapter(name: str, entry: AdapterEntry) -> Adapter:
    """Return the adapter that a suite's entry `name` describes.

    Raises `ConfigError` for an adapter that is not registered or cannot be loaded, and for options that it refuses.
    """
    cls = plugins.load_plugin(GROUP, entry.adapter or name, f"adapters.{name}", Adapter)
    try:
        return cls.model_validate(entry.options)
    except ValidationError as error:
        raise ConfigError(f"adapters.{name}.options.{explain(error, cls)}") from error


def trainer_of(spec: RunSpec, stage: PlannedStage) -> Adapter:
    """Return what trains a stage: its own adapter, else the run's entry."""
    return make_adapter(str(stage.adapter.adapter) if stage.own_adapter else spec.entry, stage.adapter)


def uses_teacher(spec: RunSpec, stage: PlannedStage) -> bool:
    """Return whether a stage has a teacher and what trains it needs one."""
    return stage.teacher is not None and trainer_of(spec, stage).requirements.teacher != "none"
