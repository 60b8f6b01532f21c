"""The resources of a run: its tasks, adapter, models, engine and teacher, each loaded when it is first needed."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.adapter import Adapter, make_adapter, trainer_of, uses_teacher
from harness.config.base import digest
from harness.config.models import Model
from harness.config.run_spec import PlannedStage, RunSpec
from harness.engines.engine import CheckpointEngine
from harness.engines.engine_pool import EnginePool
from harness.errors import ConfigError, ModelError, RunError
from harness.evaluation.groups import EvaluationPlan, load_evaluation_plan
from harness.lm.chat import Renderer
from harness.lm.checkpoints import (
    allow_own_code,
    context_of,
    files_digest,
    load_renderer,
    vocabulary_of,
    weights_digest,
)
from harness.lm.logprobs import TeacherRequest
from harness.lmeval.checks import (
    Longest,
    check_stage_task,
    check_test_prompts,
    check_training_prompts,
    cut_references,
)
from harness.lmeval.generation_settings import tasks_by_profile
from harness.lmeval.grader_source import items_digest, settings_digest
from harness.lmeval.library import TaskLibrary
from harness.lmeval.overlap import stream_overlap
from harness.lmeval.task import Task
from harness.lmeval.trial import try_task
from harness.pipeline.build.model_source import checkpoint_of
from harness.pipeline.processes.devices import keep_freed_memory, limit_threads, working_device
from harness.rundir.process.progress import Event, Report
from harness.rundir.process.secrets import mask
from harness.rundir.process.session import PeakMemory, Timer
from harness.rundir.process.trackers import Log, TrackedRun, check_trackers, tracked, untracked
from harness.rundir.records.overlap_record import Overlap
from harness.rundir.schema import SCHEMA, SOURCES, Manifest, Noise, StageRecord
from harness.rundir.training.snapshots import StopRequest
from harness.teachers.teacher_pool import TeacherPool, refuse_request, scores_task

log = logging.getLogger(__name__)


class RunResources:
    """The resources of one run, each loaded when it is first needed; pipeline steps share one object.

    `weights` and `files` hold the digests of the run's checkpoints and teachers by name (`start`, `stage_1`, `teacher`).
    """

    def __init__(self, spec: RunSpec, report: Report) -> None:
        limit_threads(spec.suite.threads)
        keep_freed_memory()
        allow_own_code(spec.suite.trust_remote_code)
        self.suite, self.report = spec.suite, report
        self.device = working_device(self.suite.device)
        self.library = TaskLibrary(self.suite.include, self.suite.data)
        self.spec = spec.counted(lambda task, limit: len(self.tasks[task].training_docs(limit)))
        self.adapter: Adapter = make_adapter(spec.entry, self.suite.adapters[spec.entry])
        self.weights: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.track: Log = untracked
        self.stop = StopRequest()
        self.engines = EnginePool(self.suite, self.device, spec.path, self.warn)
        self.teachers = TeacherPool(self.device, spec.path, self.checkpoint_of)
        self.timer = Timer("models", "train", "evaluate", whole="total")
        self.memory = PeakMemory(self.device)

    @cached_property
    def evaluated(self) -> EvaluationPlan:
        """What the suite evaluates: tasks and groups under every profile, with their final generation settings."""
        return load_evaluation_plan(self.library, self.suite)

    @property
    def cells(self) -> dict[str, Task]:
        """The tasks under every profile, by cell name."""
        return self.evaluated.cells

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks under the suite's first profile."""
        return self.evaluated.tasks

    def task(self, name: str) -> Task:
        """Return a task of the suite, or one that another run trained before this run's start; it is loaded once."""
        return self.tasks[name] if name in self.tasks else self.library.loaded(name)

    @cached_property
    def start(self) -> Path:
        """The student's checkpoint before any stage."""
        with self.phase("models"):
            return self.checkpoint_of(self.suite.student)

    @cached_property
    def renderer(self) -> Renderer:
        """The start's tokenizer and chat template."""
        return load_renderer(self.start, self.suite.student)

    def describe(self) -> Manifest:
        """Return the manifest of a new run, before it has weights, sessions or an end."""
        config = mask(self.spec.config())
        evaluation = self.suite.evaluation
        named = [*self.cells.values(), *self.evaluated.groups.values()]
        profiles = tasks_by_profile(named, evaluation) if evaluation.profiles else {}
        return Manifest(
            version=SCHEMA,
            vouched=True,
            suite=self.suite.name,
            adapter=self.spec.entry,
            kind=self.spec.kind,
            trains_on=tuple(source for source in SOURCES if source in self.adapter.capabilities.trains_on),
            adapter_config=mask(self.adapter.model_dump(mode="json")),
            order=self.spec.order,
            stages=tuple(map(_stage_record, self.spec.stages)),
            probes=tuple(self.evaluated.probes),
            profiles={name: tuple(tasks) for name, tasks in profiles.items()},
            noise=self._noise(),
            seed=self.spec.seed,
            looks=self.suite.planned_looks,
            start=self.suite.student.start_name,
            config=config,
            config_hash=self.spec.config_hash,
            weights={},
            sessions=(),
            finished=None,
        )

    def _noise(self) -> Noise | None:
        """Return which cells of the start are evaluated again and how often, or None where the suite asks for none.

        Raises `ConfigError` where no profile samples, because the answers would be the same each time.
        """
        if not (repeats := self.suite.evaluation.noise_floor):
            return None
        if not (cells := list(sampled_cells(self.cells))):
            raise ConfigError(
                f"evaluation.noise_floor is {repeats} and no profile samples, so the answers would be the same each time; "
                "name a profile with a temperature above 0, or leave noise_floor out"
            )
        return Noise(repeats=repeats, cells=tuple(cells))

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Count the seconds and the peak memory of the block for a phase: models, train or evaluate."""
        with self.timer(name), self.memory(name):
            yield

    def model_files(self) -> dict[str, str]:
        """Return digests of the start's configuration and tokenizer files, and of a chat template in a file."""
        template = self.suite.student.chat.template
        found = {"start": files_digest(self.start)}
        if template is not None and Path(template).is_file():
            found["template"] = digest(Path(template).read_text(encoding="utf-8"))
        return found

    def inputs(self) -> dict[str, str]:
        """Return the digests of `model_files`, of each stage's rendered training items, and of each task's file and grader."""
        trained = [(stage, name) for stage in self.spec.stages for name in stage.trains]
        items = {
            f"training items of stage {stage.index} {name}": items_digest(
                self.tasks[name].training_examples(self.renderer, stage.training.train_items)
            )
            for stage, name in trained
        }
        settings = {f"settings or grader of {cell}": settings_digest(task) for cell, task in self.cells.items()}
        return {**self.model_files(), **items, **settings}

    def verify(self, checkpoint: Path, name: str) -> str:
        """Return the digest of a checkpoint's weights.

        `name` is the checkpoint's name in the run, such as `start` or `stage_1`. Raises `RunError` for a checkpoint that is
        missing or differs from the one that the run recorded under this name.
        """
        if not checkpoint.is_dir():
            raise RunError(
                f"{checkpoint} is missing, and the rest of the run needs it; restore it from a copy, or choose another --out "
                "to train it again"
            )
        found = {"weights": (self.weights, weights_digest(checkpoint)), "files": (self.files, files_digest(checkpoint))}
        for what, (recorded, present) in found.items():
            if recorded.setdefault(name, present) not in ("", present):
                raise RunError(
                    f"{checkpoint} is not the checkpoint that the run recorded as {name}: its {what} have digest {present}, "
                    f"expected {recorded[name]}; restore it from a copy, or choose another --out"
                )
        return found["weights"][1]

    def used(self) -> dict[str, Any]:
        """Return this session's seconds and peak memory by phase, as the manifest records them."""
        return {"seconds": self.timer.seconds, "peak_memory": self.memory.summary}

    def check(self) -> None:
        """Refuse what would fail, or be cut silently, hours later.

        Raises `ConfigError`, `TaskError` or `ModelError` for trackers, engines, teachers, tasks, prompts and adapter options
        with which the run cannot end.
        """
        check_trackers(self.suite.trackers)
        self.engines.check()
        self._check_processes()
        self._check_teachers()
        for name in self.spec.trained:
            check_stage_task(self.tasks[name])
        self._check_top_k()
        renderer = self.renderer
        for task in self.tasks.values():
            try_task(task, renderer)
        context, beyond = self.suite.context(context_of(self.start)), self.suite.engine.beyond_context
        check_test_prompts(self.cells.values(), renderer, context, beyond, self.suite.evaluation.limit)

        def longest(task: Task, limit: int | None, _: int) -> int:
            # A task caches its examples, so the stages do not render them again.
            return max(len(example.prompt) for example in task.training_examples(renderer, limit))

        check_training_prompts(self.spec, self.tasks, context, longest)
        self._check_teacher_contexts(longest)
        for sentence in cut_references(self.spec, stages_on_data(self.spec), self.tasks, renderer):
            self.warn(sentence)

    def _check_processes(self) -> None:
        if (count := self.suite.parallel.processes) == 1:
            return
        if not self.adapter.capabilities.distributes and self.spec.kind != "none":
            raise ConfigError(
                f"parallel.processes is {count}, but adapters.{self.spec.entry} trains in one process; set it to 1"
            )

    def _check_teachers(self) -> None:
        refuse_teachers(self.spec)
        for stage in self.spec.stages:
            if stage.teacher is not None and uses_teacher(self.spec, stage):
                self.teachers.check(stage.teacher)

    def _check_teacher_contexts(self, longest: Longest) -> None:
        """Refuse a teacher that cannot read the longest training prompt together with its response."""
        for stage in self.spec.stages:
            if stage.teacher is None or not uses_teacher(self.spec, stage):
                continue
            answer = stage.training.max_new_tokens
            for name in stage.trains:
                if (context := self.teachers.context_of(stage.teacher, name)) is None:
                    continue
                needed = longest(self.tasks[name], stage.training.train_items, context - answer) + answer
                if needed > context:
                    raise ModelError(
                        f"the teacher of stage {stage.name} reads {context} tokens, but a prompt of {name} and its response "
                        f"may take {needed}; lower training.max_new_tokens or use a teacher with more context"
                    )

    def _check_top_k(self) -> None:
        tokens = vocabulary_of(self.start)
        if (top_k := max(trainer_of(self.spec, stage).requirements.top_k for stage in self.spec.stages)) > tokens:
            raise ConfigError(
                f"adapters.{self.spec.entry}: top_k is {top_k}, but the vocabulary has {tokens} tokens; lower top_k"
            )

    def overlap(self) -> Overlap:
        """Return how training prompts overlap with test prompts; warn where they are the same."""
        found = stream_overlap(self.spec, self.tasks, self.library)
        if found.warning is not None:
            self.warn(found.warning)
        return found

    def engine_on(self, checkpoint: Path) -> CheckpointEngine | None:
        """Return the run's engine, started on `checkpoint` if needed; None where models in this process generate."""
        with self.phase("models"):
            return self.engines.take(checkpoint)

    def tracked(self) -> AbstractContextManager[Log]:
        """Return the suite's trackers as a block; the function that it yields takes figures and the run's step.

        Steps are counted from 0 over all stages.
        """
        group = f"{self.suite.name}/{self.spec.entry}/{self.spec.order}"
        run = TrackedRun(self.suite.name, self.spec.label, group, self.spec.path / "trackers")
        return tracked(self.suite.trackers, run, mask(self.spec.config()), self.warn)

    def checkpoint_of(self, spec: Model) -> Path:
        """Return the folder of one of the run's models, which is built or downloaded where it is missing."""
        return checkpoint_of(spec, self.spec.seed, self.library, self._building, self.device)

    def warn(self, sentence: str) -> None:
        """Show the user a warning of one sentence, and write it to the run's log."""
        log.warning("%s: %s", self.spec.label, sentence)
        self.report(Event(self.spec.label, sentence, warning=True))

    def _building(self, what: str, done: int, total: int) -> None:
        self.report(Event(self.spec.label, f"build {what}", done, total))


def _stage_record(stage: PlannedStage) -> StageRecord:
    own = {"adapter": str(stage.adapter.adapter)} if stage.own_adapter else {}
    return StageRecord(name=stage.name, trains=stage.trains, steps=stage.training.steps, **own)


def stages_on_data(spec: RunSpec) -> list[str]:
    """Return the names of the stages that train on the tasks' references."""
    return [stage.name for stage in spec.stages if "data" in trainer_of(spec, stage).capabilities.trains_on]


def refuse_teachers(spec: RunSpec) -> None:
    """Raise `ConfigError` for a stage whose teacher cannot return what its adapter needs; contacts no teacher."""
    for stage in spec.stages:
        asked = trainer_of(spec, stage).requirements
        if stage.teacher is not None and asked.teacher != "none":
            request = TeacherRequest(top_k=asked.top_k, entropy=asked.entropy)
            refuse_request(stage.teacher, asked.teacher, request, stage.training.temperature)
            if lacking := [task for task in stage.trains if not scores_task(stage.teacher, task)]:
                raise ConfigError(
                    f"stage {stage.name}: teacher.by_task names no teacher for {', '.join(lacking)}; add one, or name one for "
                    "all other tasks under teacher.otherwise"
                )


def sampled_cells(cells: Mapping[str, Task]) -> dict[str, Task]:
    """Return the cells whose answers are sampled, by name, so that they depend on the engine's seed."""
    return {
        name: task
        for name, task in cells.items()
        if task.generates and task.generation.get("temperature") and task.generation.get("do_sample", True)
    }
