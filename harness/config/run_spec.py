"""Describe a run by suite, adapter entry, order of stages and seed, and resolve the settings of its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeGuard

from harness.config.base import digest, merge
from harness.config.overrides import looks_local
from harness.config.suite import AdapterEntry, Suite
from harness.config.teacher_settings import TeacherSpec
from harness.config.training import Training

# Where a configuration has teachers: the suite's and the stages' own, and those behind a teacher of kind cache or routed.
_BEHIND = ("", ".of", ".otherwise", ".by_task.*")
TEACHERS = tuple(f"{place}teacher{first}{then}" for place in ("", "stages.*.") for first in _BEHIND for then in _BEHIND)
SERVER_KEYS = (
    "urls",
    "start",
    "batch",
    "concurrency",
    "timeout",
    "deadline",
    "start_deadline",
    "wrong_answers",
    "exact_ids",
    "api_key_variable",
)
# A run that ran out of memory in stage 3 continues with smaller micro-batches instead of starting again.
_TRAININGS = ("", "stages.*.", "adapter.", "stages.*.adapter.")
_BATCHES = ("micro_batch", "tokens_per_batch", "packed", "activation_checkpointing")
MAY_CHANGE = frozenset(
    {
        *("device", "threads", "parallel", "data", "include", "resources", "trust_remote_code"),
        *("evaluation.batch_size", "evaluation.teacher"),
        *(f"{where}training.{key}" for where in _TRAININGS for key in _BATCHES),
        *("vllm.gpu_memory_utilization", "vllm.cpu_cache_gib"),
        *(f"vllm_server.{key}" for key in ("urls", "shared_folder", "transfer", "concurrency", "timeout", "deadline")),
        # Where a teacher is served, and how long its answers may take; its scores show that it is the same teacher.
        *(f"{place}.{key}" for place in TEACHERS for key in SERVER_KEYS),
    }
)


Paths = Literal["ids", "names", "whole"]  # see `identity_of`


@dataclass(frozen=True)
class PlannedStage:
    """One stage of one run, with its settings resolved from the suite and the adapter entry.

    `index` counts from 1. `trains` are the tasks whose training items it draws from. `teacher` is the stage's own, else the
    suite's; `own_teacher` says which. `adapter` is what trains it: the run's entry, or with `own_adapter` the stage's.
    `shared`: this stage and all before it have their own adapters, so the checkpoint is the same for all methods of a seed.
    """

    index: int
    name: str
    trains: tuple[str, ...]
    training: Training
    teacher: TeacherSpec | None
    adapter: AdapterEntry
    own_teacher: bool = False
    own_adapter: bool = False
    shared: bool = False

    @property
    def teacher_name(self) -> str:
        """The name under which a run records the digest of this stage's teacher."""
        return f"stage_{self.index}_teacher" if self.own_teacher else "teacher"


@dataclass(frozen=True)
class RunSpec:
    """One run: a suite, one of its adapter entries, an order of stages and a seed."""

    suite: Suite
    entry: str
    seed: int
    order: str = "default"
    out: Path = Path("runs")
    items: Mapping[str, int] | None = None  # training items of each stage; None before `counted`

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.out / self.suite.name / self.entry / self.order / f"seed{self.seed}"

    @property
    def label(self) -> str:
        """The run's short name on the terminal."""
        order = "" if self.order == "default" else f" {self.order}"
        return f"{self.suite.name} {self.entry}{order} seed {self.seed}"

    @cached_property
    def stages(self) -> tuple[PlannedStage, ...]:
        """The stages in this run's order; raises `ValueError` for an order that the suite does not have.

        Budgets in epochs are converted to steps where `items` is given, see `counted`.
        """
        ordered, method = self.suite.ordered_stages(self.order), self.suite.adapters[self.entry]
        trainings = [self.suite.training_for(stage, self.entry) for stage in ordered]
        if self.items is not None:
            counts = [self.items[stage.task] for stage in ordered]
            trainings = [training.for_items(count) for training, count in zip(trainings, counts, strict=True)]
        return tuple(
            PlannedStage(
                index=index,
                name=stage.task,
                trains=stage.trains,
                training=training,
                teacher=stage.teacher or self.suite.teacher,
                adapter=stage.adapter or method.model_copy(update={"adapter": self.kind}),
                own_teacher=stage.teacher is not None,
                own_adapter=stage.adapter is not None,
                shared=all(before.adapter is not None for before in ordered[:index]),
            )
            for index, (stage, training) in enumerate(zip(ordered, trainings, strict=True), start=1)
        )

    def counted(self, items_of: Callable[[str, int | None], int]) -> RunSpec:
        """Return the run with every budget in steps; `items_of` counts a task's training items up to a limit."""
        if all(stage.training.epochs is None for stage in self.stages):
            return self
        counts = {
            stage.name: sum(items_of(task, stage.training.train_items) for task in stage.trains)
            for stage in self.stages
        }
        return replace(self, items=counts)

    @property
    def kind(self) -> str:
        """The registered name of the adapter that the entry uses."""
        return self.suite.adapters[self.entry].adapter or self.entry

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks that the stages train, in this run's order."""
        return tuple(task for stage in self.stages for task in stage.trains)

    def steps_before(self, stage: int) -> int:
        """Return the training steps of all stages before `stage`, which counts from 1; past the last stage, of all."""
        return sum(planned.training.steps for planned in self.stages[: stage - 1])

    @property
    def config_hash(self) -> str:
        """Digest of the configuration that decides this run's results, see `identity_of`."""
        return digest(identity_of(self.config()))

    def config(self) -> dict[str, Any]:
        """Return the suite as this run resolves it, without keys about other runs, storage and display."""
        left_out = {
            "adapters",
            "seeds",
            "looks",
            "orders",
            "description",
            "snapshot_minutes",
            "keep_rollouts",
            "trackers",
            "checkpoints",
            "storage",
        }
        suite = self.suite.model_dump(mode="json", exclude=left_out)
        if profiles := suite["evaluation"].get("profiles"):
            # The hash ignores the order of keys, but the first profile gives the suite's scores.
            suite["evaluation"]["profiles"] = [{"name": name, **profile} for name, profile in profiles.items()]
        entry = self.suite.adapters[self.entry]
        adapter = {**entry.model_dump(mode="json"), "adapter": self.kind}
        own = {"adapter": adapter, "seed": self.seed}
        stages = [stage.model_dump(mode="json") for stage in self.suite.ordered_stages(self.order)]
        return merge(suite, {**own, "stages": stages})


def identity_of(config: Mapping[str, Any], *, paths: Paths = "ids") -> dict[str, Any]:
    """Return the part of a run's configuration that must stay the same when the run continues.

    Left out is what decides how fast and where it works: device, threads, memory, folders. `paths` says what counts of the
    path of a model or template: `ids` is a whole hub id and the last part of a local path, whose content digests tell apart;
    `names` is the last part of either, as earlier versions read it; `whole` is all of it.
    """
    return _identity(config, (), paths)


def averages_micro_batches(config: Mapping[str, Any]) -> bool:
    """Return whether an adapter of a run, or one that it wraps, has `reduction: micro_batch_mean`.

    Its loss depends on the sizes of micro-batches, which otherwise decide speed and memory alone.
    """
    return any(map(_averages, [config.get("adapter"), *(stage.get("adapter") for stage in config.get("stages") or ())]))


def _averages(adapter: Any) -> bool:
    if not _is_mapping(adapter):
        return False
    return adapter.get("reduction") == "micro_batch_mean" or any(map(_averages, adapter.values()))


def session_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rest of a run's configuration, by dotted keys: what each session may set for itself."""
    return dict(_of_session(config, ()))


def _identity(value: Any, path: tuple[str, ...], paths: Paths) -> Any:
    if _is_mapping(value):
        parts = {key: (part, (*path, key)) for key, part in value.items()}
        return {key: _identity(*found, paths) for key, found in parts.items() if not _may_change(found[1])}
    if _is_sequence(value):
        return [_identity(part, (*path, "*"), paths) for part in value]
    if path[-1:] in (("path",), ("template",)) and isinstance(value, str):
        return value if paths == "whole" or (paths == "ids" and not looks_local(value)) else Path(value).name
    return value


def _of_session(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if path and _may_change(path):
        yield ".".join(path), value
    elif _is_mapping(value):
        for key, part in value.items():
            yield from _of_session(part, (*path, key))
    elif _is_sequence(value):
        for place, part in enumerate(value):
            yield from ((key.replace("*", str(place), 1), each) for key, each in _of_session(part, (*path, "*")))


def _may_change(path: tuple[str, ...]) -> bool:
    # A task's name, as a key of `by_task`, may contain dots.
    named = [path[place - 1] == "by_task" for place in range(1, len(path))]
    return ".".join(("*" if of_task else key) for key, of_task in zip(path, (False, *named), strict=True)) in MAY_CHANGE


def plan_runs(suite: Suite, entries: Sequence[str], seeds: Sequence[int], order: str, out: Path) -> list[RunSpec]:
    """Return the runs of a sweep, seed by seed, so that the first seed's comparison is complete first."""
    return [RunSpec(suite, entry, seed, order, out) for seed, entry in product(seeds, entries)]


def _is_mapping(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))
