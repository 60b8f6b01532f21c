"""What a suite file may contain: frozen pydantic models with the paper's settings as defaults. Imports no torch.

A suite names a student, a teacher, the ordered stages, the retention probes (tasks that are never trained), the adapters
under test and the budgets. Unknown keys are errors. `harness.config.load` reads the files.
"""

from __future__ import annotations

import re
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
from harness.config.base import LOOKS_MEAN, Looks, Name, PathPart, Strict, refuse_early_end
from harness.config.evaluation import Evaluation
from harness.config.models import Model
from harness.config.plugins import entry_points_of
from harness.config.teacher_settings import TeacherSpec
from harness.config.training import Training, merge_training

JOINT = "joint"  # the order that trains all tasks in one stage
HF = "hf"  # the backend of suites that name none
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class Checkpoints(Strict):
    """Which stages' checkpoints stay on disk; the others are deleted as soon as nothing needs them."""

    keep: Literal["all", "last"] | tuple[PathPart, ...] = Field(
        default="all", description="`all`, the `last` stage's, or a list of stages"
    )

    def holds(self, stage: str) -> bool:
        """Return whether a stage's checkpoint stays after the next stage has finished; with `last`, none does."""
        return self.keep == "all" or (self.keep != "last" and stage in self.keep)


class AdapterEntry(Strict):
    """One method under test; several entries may use one adapter with different options."""

    adapter: str | None = Field(default=None, description="registered name; null takes the entry's own")
    options: dict[str, Any] = Field(default={})
    training: dict[str, Any] = Field(
        default={}, description="what differs from the suite's training, for this entry only"
    )


class Parallel(Strict):
    """How many processes train one stage together; on GPUs, one process for each GPU."""

    processes: int = Field(default=1, gt=0)


class Stage(Strict):
    """One adaptation step: a task, and what differs from the suite's defaults.

    A stage with its own adapter is trained by that adapter under every method. If all stages up to it have their own, its
    checkpoint is the same for all methods of a seed.
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
        default=(), description="tasks trained together in this stage; `task` is then only its name"
    )

    @field_validator("adapter")
    @classmethod
    def _require_adapter_name(cls, given: AdapterEntry | None) -> AdapterEntry | None:
        if given is not None and given.adapter is None:
            raise ValueError("a stage's adapter has no name; give `adapter`, for example {adapter: sft}")
        return given

    @model_serializer(mode="wrap")
    def _omit_absent_adapter(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an absent adapter, so that suites without one keep their hash."""
        dumped: dict[str, Any] = dump(self)
        return {key: value for key, value in dumped.items() if key != "adapter" or value is not None}

    @property
    def trains(self) -> tuple[str, ...]:
        """The tasks whose training items this stage draws from."""
        return self.together or (self.task,)


class TrainedBefore(Strict):
    """A task that was trained before a run's start, and how many of its training items were used; null is all."""

    task: PathPart
    items: int | None = None


class Origin(Strict):
    """The finished stage of another run that a run starts from; digests and names come from that run's manifest."""

    path: str = Field(description="the stage's folder")
    suite: str
    adapter: str
    order: str
    seed: int
    stage: int
    weights: str = Field(description="digest of the checkpoint's weights")
    config_hash: str
    trained: tuple[TrainedBefore, ...] = Field(description="tasks that the run trained up to that stage, for replay")


def whole_gpus(gpus: float | None) -> float | None:
    """Refuse a part of several GPUs: Ray grants a part of one, or whole ones."""
    if gpus is not None and gpus > 1 and gpus % 1:
        raise ValueError(f"{gpus:g} GPUs cannot be granted; ask for a whole number, or for a part of one")
    return gpus


class EvaluationResources(Strict):
    """What the evaluation of a finished stage requests from a cluster, while its run trains the next one."""

    cpus: float | None = Field(default=None, gt=0, description="null takes the share of one of the run's processes")
    gpus: float | None = Field(default=None, ge=0, description="null takes the share of one of the run's processes")
    memory_gib: float | None = Field(
        default=None, gt=0, description="null takes the share of one of the run's processes"
    )

    _whole_gpus = field_validator("gpus")(whole_gpus)


class Resources(Strict):
    """What one run requests from a cluster, on each of its nodes; only `harness sweep --ray` uses it."""

    nodes: int = Field(
        default=1,
        gt=0,
        description="nodes that train one run together, with an equal share of `parallel.processes` each",
    )

    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="null takes one for each of the node's processes where the cluster has any and `device` is not cpu",
    )
    memory_gib: float | None = Field(default=None, gt=0, description="null requests none")
    _whole_gpus = field_validator("gpus")(whole_gpus)

    evaluation: EvaluationResources | None = Field(
        default=None,
        description="for the evaluation of a stage while the next one trains; null takes the share of one process of the run",
    )


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
    looks: Looks | None = Field(default=None, description=LOOKS_MEAN)
    evaluation: Evaluation = Evaluation()
    backend: str = Field(
        default=HF,
        description="what generates rollouts and evaluates: `hf`, `vllm` or another registered one; a block of its name "
        "holds its settings",
    )
    data: dict[str, str] = Field(default={}, description="name to a local path, handed to the tasks' loaders")
    include: tuple[str, ...] = Field(default=(), description="folders with more task files")
    device: str = Field(default="auto", description="`auto`, `cpu`, or `cuda`: the first GPU that the run sees")
    parallel: Parallel = Field(
        default=Parallel(), description="processes that train a stage together, and share its weights"
    )
    threads: int | None = Field(default=None, gt=0, description="CPU threads of one run; null leaves torch's default")
    trackers: tuple[Tracker, ...] = Field(
        default=(), description="experiment trackers that get a copy of the figures during the run"
    )
    snapshot_minutes: float | None = Field(
        default=10, ge=0, description="most training time lost if the process dies; null disables snapshots"
    )
    trust_remote_code: bool = Field(
        default=False, description="run the Python code in the folders of student and teacher"
    )
    keep_rollouts: int | None = Field(
        default=64, ge=0, description="training rollouts of each step kept in rollouts.parquet; null keeps all"
    )

    origin: Origin | None = Field(
        default=None, description="written by `--from`: the stage that the student comes from"
    )
    checkpoints: Checkpoints = Field(default=Checkpoints(), description="which stages' checkpoints stay on disk")
    resources: Resources | None = Field(default=None, description="what a run requests from a cluster")
    storage: str | None = Field(
        default=None,
        min_length=1,
        description="folder or URL, such as s3://bucket/runs, to which finished stages and the last snapshot are copied; a "
        "machine that lacks them fetches them from there",
    )

    # The settings of every backend that has a block, and of the suite's backend.
    _backends: dict[str, BackendSettings] = PrivateAttr(default={})

    @field_validator("device")
    @classmethod
    def _first_gpu(cls, device: str) -> str:
        if (number := re.fullmatch(r"cuda:([1-9]\d*)", device)) is not None:
            raise ValueError(
                f"device is {device}, and a run computes on the first GPU that it sees; give device cuda, and set "
                f"CUDA_VISIBLE_DEVICES={number[1]}"
            )
        if device not in ("auto", "cpu", "cuda", "cuda:0"):
            raise ValueError(f"device is {device!r}; expected auto, cpu or cuda")
        return device

    @model_validator(mode="wrap")
    @classmethod
    def _read_backends(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Read the blocks of all registered backends, so that `--set backend=vllm` can switch between them."""
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
        """Leave out keys added later at their defaults, so that suites without them keep their hash; add backend settings."""
        dumped: dict[str, Any] = dump(self)
        if self.parallel == Parallel():
            dumped.pop("parallel", None)
        if self.origin is None:
            dumped.pop("origin", None)
        for key in ("resources", "storage", "looks"):
            if dumped.get(key) is None:
                dumped.pop(key, None)
        if self.backend == HF:
            return {key: value for key, value in dumped.items() if key != "backend"}
        return {**dumped, self.backend: self._backends[self.backend].model_dump(mode=info.mode)}

    @model_validator(mode="after")
    def _check_names(self) -> Suite:
        tasks, names = list(self._trained), [stage.task for stage in self.stages]
        for values in (tasks, names):
            if repeated := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"stages train {', '.join(repeated)} more than once; give each stage its own task")
        for name, values in (("probes", self.probes), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} contain one twice; give each once")
        refuse_early_end(self.looks, len(self.seeds))
        if trained := sorted(set(self.probes) & set(tasks)):
            raise ValueError(f"probes {', '.join(trained)} are also trained; a probe is a task that no stage trains")
        if unclear := sorted({s.task for s in self.stages if s.together} & {*tasks, *self.probes}):
            raise ValueError(
                f"stage {', '.join(unclear)} trains several tasks and has the name of one; give it another name"
            )
        nodes = self.resources.nodes if self.resources else 1
        if self.parallel.processes % nodes:
            raise ValueError(
                f"resources.nodes is {nodes}, which does not divide parallel.processes, {self.parallel.processes}; every node "
                "needs the same number of processes"
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
    def planned_looks(self) -> tuple[int, ...]:
        """The numbers of seeds at which claims on this suite are judged."""
        return self.looks or (len(self.seeds),)

    @property
    def engine(self) -> BackendSettings:
        """The settings of the suite's backend."""
        return self._backends.get(self.backend) or read_settings({self.backend: {}})[self.backend]

    def gpus_on_a_node(self, nodes: int = 1) -> float:
        """Return how many GPUs a run uses on each of its nodes.

        It is one for each of its processes there, or as many as its backend spreads a model over.
        """
        return max(self.parallel.processes / nodes, int(getattr(self.engine, "tensor_parallel_size", 1)))

    def context(self, of_model: int) -> int:
        """Return the longest sequence, in tokens, that the backend accepts for a model whose context is `of_model`."""
        return self.engine.context(of_model)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All evaluated tasks: the stages' in the file's order, then the probes."""
        return (*self._trained, *self.probes)

    @property
    def _trained(self) -> tuple[str, ...]:
        return tuple(task for stage in self.stages for task in stage.trains)

    def ordered_stages(self, order: str = "default") -> tuple[Stage, ...]:
        """Return the stages in a named order: `default` is the file's, `joint` is one stage over all tasks.

        Raises `ValueError` for an unknown order, and for `joint` where the stages differ in more than steps.
        """
        if order == "default" and order not in self.orders:
            return self.stages
        if order == JOINT:
            return (self._joint_stage(),)
        if order not in self.orders:
            known = ", ".join(["default", JOINT, *self.orders])
            raise ValueError(f"order {order!r} is not one of {known}; name one, or add it under `orders`")
        by_task = {stage.task: stage for stage in self.stages}
        return tuple(by_task[task] for task in self.orders[order])

    @property
    def first_own_stage(self) -> Stage:
        """The first stage that the method under test trains; the first one where all have an adapter of their own."""
        return next((stage for stage in self.stages if stage.adapter is None), self.stages[0])

    def training_for(self, stage: Stage, entry: str) -> Training:
        """Return a stage's budget under an adapter entry, with the changes of that entry or of the stage's own adapter."""
        own = stage.adapter or self.adapters[entry]
        changed = Training.model_validate(merge_training(stage.training.model_dump(), own.training))
        if stage.task != JOINT or changed.epochs is not None:
            return changed
        return changed.model_copy(update={"steps": sum(self.training_for(s, entry).steps for s in self.stages)})

    def _joint_stage(self) -> Stage:
        """Return one stage over all tasks with the steps of all stages; their other settings must agree."""
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
