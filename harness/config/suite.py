"""What a suite file may say: frozen pydantic models with the paper's settings as defaults. Imports no torch.

A suite names a student, a teacher, the ordered stages, the retention probes (tasks that are never trained), the adapters
under test and the budgets. It refuses unknown keys. `harness.config.load` reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, cast

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from harness.config.backend_settings import GROUP, BackendSettings, read_settings
from harness.config.base import Name, PathPart, Strict
from harness.config.evaluation import Evaluation
from harness.config.models import Model
from harness.config.plugins import entry_points_of
from harness.config.teacher_settings import TeacherSpec
from harness.config.training import Training, merge_training

JOINT = "joint"  # the order that trains all tasks in one stage
HF = "hf"  # the backend of suites that name none
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class Checkpoints(Strict):
    """Which stages' checkpoints stay on the disk; one goes as soon as nothing needs it."""

    keep: Literal["all", "last"] | tuple[PathPart, ...] = Field(
        default="all", description="`all`, the `last` stage's, or a list of stages"
    )

    def holds(self, stage: str) -> bool:
        """Whether a stage's checkpoint stays; the last stage's is asked for under `last` only when the run is done."""
        return self.keep == "all" or (self.keep != "last" and stage in self.keep)


class AdapterEntry(Strict):
    """One method under test; several entries may use one adapter with other options."""

    adapter: str | None = Field(default=None, description="registered name; null takes the entry's own")
    options: dict[str, Any] = Field(default={})
    training: dict[str, Any] = Field(
        default={}, description="what differs from the suite's training, for this entry only"
    )


class Parallel(Strict):
    """How many processes of this machine train one stage together; on GPUs, one process for each."""

    processes: int = Field(default=1, gt=0)


class Stage(Strict):
    """One adaptation step: a task, and what differs from the suite's defaults.

    A stage with an adapter of its own is trained by it whatever the method, so at one seed all methods leave it with the
    same weights.
    """

    task: PathPart
    training: Training
    adapter: AdapterEntry | None = Field(
        default=None,
        description="what trains this stage for all methods: an entry of the suite, a registered name, or a mapping as in "
        "`adapters`; null is the method under test",
    )
    teacher: TeacherSpec | None = Field(default=None, description="null takes the suite's teacher")
    together: tuple[PathPart, ...] = Field(
        default=(), description="tasks trained in one stage, which `task` then only names"
    )

    @field_validator("adapter")
    @classmethod
    def _adapter_is_named(cls, given: AdapterEntry | None) -> AdapterEntry | None:
        if given is not None and given.adapter is None:
            raise ValueError("a stage's adapter has no name; give `adapter`, for example {adapter: sft}")
        return given

    @model_serializer(mode="wrap")
    def _omit_no_adapter(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an adapter that is not given, so that suites without one keep their hash."""
        dumped: dict[str, Any] = dump(self)
        return {key: value for key, value in dumped.items() if key != "adapter" or value is not None}

    @property
    def trains(self) -> tuple[str, ...]:
        """The tasks whose training items this stage draws from."""
        return self.together or (self.task,)


class TrainedBefore(Strict):
    """A task that was trained before a run's start, and how many of its training items; null is all."""

    task: PathPart
    items: int | None = None


class Origin(Strict):
    """The finished stage of another run that a run starts from; digests and names are those of its manifest."""

    path: str = Field(description="the stage's folder")
    suite: str
    adapter: str
    order: str
    seed: int
    stage: int
    weights: str = Field(description="digest of the checkpoint's weights")
    config_hash: str
    trained: tuple[TrainedBefore, ...] = Field(description="what the run trained up to there, for replay")


class Resources(Strict):
    """What one run asks a cluster for, on each of its nodes; used by `harness sweep --ray` alone."""

    nodes: int = Field(
        default=1, gt=0, description="nodes that train one run together; they share out `parallel.processes`"
    )

    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(
        default=None, ge=0, description="null takes one where the cluster has any and `device` is not cpu"
    )
    memory_gib: float | None = Field(default=None, gt=0, description="null asks for none")


class Suite(Strict):
    """A whole experiment, read from one YAML file."""

    name: Name
    description: str = ""
    student: Model
    teacher: TeacherSpec | None = None
    training: Training = Training()
    stages: tuple[Stage, ...] = Field(min_length=1)
    orders: dict[Name, tuple[str, ...]] = Field(default={}, description="name to a permutation of the stages' tasks")
    probes: tuple[PathPart, ...] = ()
    adapters: dict[Name, AdapterEntry] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    evaluation: Evaluation = Evaluation()
    backend: str = Field(
        default=HF,
        description="what generates rollouts and evaluates: `hf`, `vllm` or another registered one; a block of its name "
        "holds its settings",
    )
    data: dict[str, str] = Field(default={}, description="name to a local path, handed to the tasks' loaders")
    include: tuple[str, ...] = Field(default=(), description="folders with more task files")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    parallel: Parallel = Field(
        default=Parallel(), description="processes that train a stage together, and share its weights"
    )
    threads: int | None = Field(default=None, gt=0, description="CPU threads of one run; null leaves torch's default")
    trackers: tuple[Tracker, ...] = Field(
        default=(), description="experiment trackers that get a copy of the figures as a run goes on"
    )
    snapshot_minutes: float | None = Field(
        default=10, ge=0, description="most training time lost if the process dies; null disables snapshots"
    )
    trust_remote_code: bool = Field(
        default=False, description="run the Python code that the folders of student and teacher bring along"
    )
    keep_rollouts: int | None = Field(
        default=64, ge=0, description="training rollouts of each step kept in rollouts.parquet; null keeps all"
    )

    origin: Origin | None = Field(
        default=None, description="written by `--from`: the stage that the student comes from"
    )
    checkpoints: Checkpoints = Field(default=Checkpoints(), description="which stages' checkpoints stay on the disk")
    resources: Resources | None = Field(default=None, description="what a run asks a cluster for")
    storage: str | None = Field(
        default=None,
        min_length=1,
        description="folder or URL, such as s3://bucket/runs, that finished stages are copied to, and fetched from where a "
        "machine lacks them",
    )

    # The settings of every backend that has a block, and of the one that is used.
    _backends: dict[str, BackendSettings] = PrivateAttr(default={})

    @model_validator(mode="wrap")
    @classmethod
    def _read_backends(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Read the block of each registered backend, so that one file serves several: `--set backend=vllm`."""
        if not isinstance(raw, Mapping):
            return handler(raw)
        given = cast(Mapping[str, Any], raw)
        names = [name for name in given if name not in cls.model_fields and name in entry_points_of(GROUP)]
        suite = handler({name: value for name, value in given.items() if name not in names})
        blocks = {name: given[name] for name in names}
        if suite.backend != HF:
            blocks.setdefault(suite.backend, {})
        suite._backends = read_settings(blocks)
        return suite

    @model_serializer(mode="wrap")
    def _omit_defaults(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Leave out the default backend, so that a suite without the key keeps its hash; add settings of others."""
        dumped: dict[str, Any] = dump(self)
        if self.parallel == Parallel():
            dumped.pop("parallel", None)
        if self.origin is None:
            dumped.pop("origin", None)
        for key in ("resources", "storage"):
            if dumped.get(key) is None:
                dumped.pop(key, None)
        if self.backend == HF:
            return {key: value for key, value in dumped.items() if key != "backend"}
        return {**dumped, self.backend: self._backends[self.backend].model_dump(mode=info.mode)}

    @model_validator(mode="after")
    def _names_are_consistent(self) -> Suite:
        tasks, names = list(self._trained), [stage.task for stage in self.stages]
        for values in (tasks, names):
            if repeated := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"stages train {', '.join(repeated)} more than once; give each stage its own task")
        for name, values in (("probes", self.probes), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} name one twice; give each once")
        if trained := sorted(set(self.probes) & set(tasks)):
            raise ValueError(f"probes {', '.join(trained)} are also trained; a probe is a task that no stage trains")
        if unclear := sorted({s.task for s in self.stages if s.together} & {*tasks, *self.probes}):
            raise ValueError(
                f"stage {', '.join(unclear)} trains tasks together and is named as one; give it another name"
            )
        nodes = self.resources.nodes if self.resources else 1
        if self.parallel.processes % nodes:
            raise ValueError(
                f"resources.nodes is {nodes}, which does not divide parallel.processes, {self.parallel.processes}; each node "
                "has as many processes"
            )
        if JOINT in {*self.orders, *names}:
            raise ValueError(f"{JOINT!r} is the order that trains all tasks in one stage; choose another name")
        kept = () if isinstance(self.checkpoints.keep, str) else self.checkpoints.keep
        if unknown := sorted(set(kept) - {*names, JOINT}):
            raise ValueError(f"checkpoints.keep names {', '.join(unknown)}; expected all, last, or stages of {names}")
        for name, order in self.orders.items():
            if sorted(order) != sorted(names):
                raise ValueError(f"order {name!r} is {list(order)}, expected a permutation of {names}")
        return self

    @property
    def engine(self) -> BackendSettings:
        """The settings of the suite's backend."""
        return self._backends.get(self.backend) or read_settings({self.backend: {}})[self.backend]

    def context(self, of_model: int) -> int:
        """The longest sequence, in tokens, that the backend takes of a model with a context of `of_model`."""
        return self.engine.context(of_model)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All evaluated tasks: the stages' in the file's order, then the probes."""
        return (*self._trained, *self.probes)

    @property
    def _trained(self) -> tuple[str, ...]:
        return tuple(task for stage in self.stages for task in stage.trains)

    def ordered_stages(self, order: str = "default") -> tuple[Stage, ...]:
        """The stages in a named order; `default` is the file's, `joint` is one stage over all tasks."""
        if order == "default" and order not in self.orders:
            return self.stages
        if order == JOINT:
            return (self._joint_stage(),)
        if order not in self.orders:
            known = ", ".join(["default", JOINT, *self.orders])
            raise ValueError(f"order {order!r} is not one of {known}")
        by_task = {stage.task: stage for stage in self.stages}
        return tuple(by_task[task] for task in self.orders[order])

    def training_for(self, stage: Stage, entry: str) -> Training:
        """A stage's budget under one adapter entry: the stage's own, then what the entry, or its own adapter, changes."""
        own = stage.adapter or self.adapters[entry]
        changed = Training.model_validate(merge_training(stage.training.model_dump(), own.training))
        if stage.task != JOINT or changed.epochs is not None:
            return changed
        return changed.model_copy(update={"steps": sum(self.training_for(s, entry).steps for s in self.stages)})

    def _joint_stage(self) -> Stage:
        """One stage over all tasks with the steps of all stages; what else they say of training must agree."""
        first = self.stages[0]
        if fixed := [stage.task for stage in self.stages if stage.adapter is not None]:
            raise ValueError(
                f"order {JOINT!r} trains all tasks in one stage, but stage {fixed[0]} has an adapter of its own; leave it out"
            )
        steps = sum(stage.training.steps for stage in self.stages)
        for stage in self.stages[1:]:
            if stage.teacher != first.teacher or _training_without_steps(stage) != _training_without_steps(first):
                raise ValueError(
                    f"order {JOINT!r} trains all tasks in one stage, but stages {first.task} and {stage.task} differ in "
                    "teacher or training; give them the same, apart from steps"
                )
        training = first.training if first.training.epochs else first.training.model_copy(update={"steps": steps})
        return Stage(task=JOINT, training=training, teacher=first.teacher, together=self._trained)


def _training_without_steps(stage: Stage) -> dict[str, Any]:
    return stage.training.model_dump(exclude={"steps"})
