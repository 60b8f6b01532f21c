"""One stage of training: load the student, run the adapter, save the checkpoint, and say so in `done.json`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import distributed

from harness.adapter import Adapter, StageContext
from harness.config.base import digest
from harness.config.models import Model
from harness.config.run_spec import PlannedStage, RunSpec, identity_of
from harness.config.teacher_settings import Needs
from harness.config.training import Training
from harness.engines.engine import Engine
from harness.engines.first_process import FirstProcessEngine
from harness.engines.hf import HFEngine
from harness.engines.student import StudentEngine
from harness.errors import RunError, StoppedError, TrainingError
from harness.evaluation.learning_curve import CurveRecorder
from harness.lm.checkpoints import Loaded, files_digest, load_checkpoint, save_checkpoint, weights_digest
from harness.lm.logprobs import StudentForward, check_head
from harness.lm.precision import suit_attention, tf32
from harness.lm.ranks import current_ranks
from harness.lm.rollouts import Example
from harness.lm.seeding import derive_seed, seed_global_generators
from harness.pipeline.processes.launched_ranks import launched_processes
from harness.pipeline.processes.rank_processes import several_processes
from harness.pipeline.resources import RunResources
from harness.rundir.files import CURVE, as_record, file_digest, full_disk_named, json_line, sync_tree, write_sealed
from harness.rundir.process.progress import SHOWN, Counter, silent
from harness.rundir.process.session import this_session
from harness.rundir.process.trackers import Log
from harness.rundir.records.training_records import DoneFile, StepLine
from harness.rundir.retention import check_space
from harness.rundir.shared.shared_stages import SharedStages
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import RunStore
from harness.rundir.training.rollout_log import Keep, Trajectories, keep_nothing
from harness.rundir.training.snapshots import FileSnapshots, shared_snapshots
from harness.teachers.local import LocalTeacher, frozen_copy
from harness.teachers.teacher import OpenTeacher

LOGS = ("steps.jsonl", CURVE, "rollouts.parquet")  # of a stage; done.json vouches for them


class StageTrainer:
    """Trains the stages of one run; a teacher is kept from one stage to the next."""

    def __init__(self, resources: RunResources) -> None:
        self.resources, self.spec, self.suite = resources, resources.spec, resources.suite
        self.device, self.phase, self.teachers = resources.device, resources.phase, resources.teachers
        self.shared = SharedStages(self.spec.out)

    def train(self, folder: StageFolder, stage: PlannedStage, checkpoint: Path) -> Path:
        """Train one stage from `checkpoint`, unless it is trained already, and return the new checkpoint.

        A stage that all methods share is trained by the first run that gets there; the others take it over.
        """
        before = f"stage_{stage.index - 1}" if stage.index > 1 else "start"
        if (done := folder.training_done) is None and stage.shared:
            with self.shared.locked(key := self._shared_key(stage)):
                done = self.shared.take(key, folder) or self._train_whole(folder, stage, checkpoint, before)
                self.shared.put(key, folder)
        done = done or self._train_whole(folder, stage, checkpoint, before)
        if done.before not in ("", self.resources.weights[before]):
            raise RunError(
                f"{folder.path / 'train'} was trained from weights {done.before}, and the run's {before} has "
                f"{self.resources.weights[before]} now; put the former ones back, or choose another --out"
            )
        if self.resources.stop.signal:
            raise StoppedError(f"stopped by {self.resources.stop.signal}; the same command continues")
        self.resources.weights[f"stage_{stage.index}"] = done.weights
        self.resources.files[f"stage_{stage.index}"] = done.files
        if done.teacher is not None:
            self.resources.weights[f"stage_{stage.index}_teacher" if stage.own_teacher else "teacher"] = done.teacher
        return folder.checkpoint

    def follow(self, stage: PlannedStage, checkpoint: Path, weights: str, folder: Path) -> None:
        """Train one stage as one of several processes, of which the first one writes the run directory; `folder` is empty."""
        student = load_checkpoint(checkpoint, _as_trained(self.suite.student, stage.training), self.device)
        suit_attention(student.model, stage.training.autocast)
        engine: Engine = HFEngine(student.model, student.renderer.tokenizer, stage.training.generation_batch)
        if not self.resources.engines.backend.in_process:
            engine = FirstProcessEngine(None)
        context = self._context(folder, stage, student, weights, engine, keep_nothing)
        seed_global_generators(context.seed)
        with tf32(context.training.tf32):
            self.resources.adapter_of(stage).train_stage(
                replace(context, log=lambda _: None, warn=lambda _: None, measure=lambda _: None)
            )

    def _processes(self, stage: PlannedStage, checkpoint: Path, weights: str) -> AbstractContextManager[None]:
        """Have the suite's number of processes train a stage, for an adapter that trains in several."""
        count = self.suite.parallel.processes
        if count == 1 or not self.resources.adapter_of(stage).capabilities.distributes:
            return nullcontext()
        follow = partial(_follow, self.spec, stage.index, checkpoint, weights)
        if distributed.is_torchelastic_launched():
            return launched_processes(self.device, follow)
        return several_processes(count, self.device, follow)

    def _train_whole(self, folder: StageFolder, stage: PlannedStage, checkpoint: Path, before: str) -> DoneFile:
        train = folder.open_training()
        weights = self.resources.verify(checkpoint, before)
        self._check_space(stage, checkpoint)
        with self.phase("models"):
            student = load_checkpoint(checkpoint, _as_trained(self.suite.student, stage.training), self.device)
            check_head(student.model)
            suit_attention(student.model, stage.training.autocast)
        trajectories = Trajectories(train, student.renderer, self.suite.keep_rollouts)
        engine = self._engine(student, stage, checkpoint)
        with self._processes(stage, checkpoint, weights):
            context = self._context(train, stage, student, weights, engine, trajectories.keep)
            done = self._train(train, self.resources.adapter_of(stage), context, student, checkpoint)
        trajectories.finish()
        sync_tree(train)
        logs = {name: file_digest(train / name) for name in LOGS if (train / name).is_file()}
        done = done.model_copy(update={"logs": logs, "before": weights})
        write_sealed(train / "done.json", done)
        FileSnapshots(train, None).clear()
        trajectories.clear()
        return done

    def _shared_key(self, stage: PlannedStage) -> str:
        """Return the digest of all that decides a shared stage's weights: the run up to it, without its method."""
        config = identity_of(self.spec.config())
        apart = {"name", "adapter", "probes", "evaluation", "stages"}
        before = self.spec.stages[: stage.index]
        manifest = RunStore(self.spec.path).manifest
        parts: dict[str, Any] = {
            "suite": {key: value for key, value in config.items() if key not in apart},
            "stages": config["stages"][: stage.index],
            "steps": [planned.training.steps for planned in before],
            "teachers": [planned.teacher and planned.teacher.model_dump(mode="json") for planned in before],
            "curve": [self.suite.evaluation.every, self.suite.evaluation.curve_items, self.suite.probes],
            "rollouts": self.suite.keep_rollouts,
            "start": [self.resources.weights["start"], self.resources.inputs()],
            "records": manifest.overlap.digests if manifest and manifest.overlap else None,
            "made with": [self.device, this_session().packages],
        }
        return digest(parts)

    def _check_space(self, stage: PlannedStage, start: Path) -> None:
        snapshots, updates = self.suite.snapshot_minutes is not None, self.resources.adapter_of(stage).updates
        if updates and (warning := check_space(self.spec.path, start, stage.name, snapshots)):
            self.resources.warn(warning)

    def _train(self, train: Path, adapter: Adapter, context: StageContext, student: Loaded, start: Path) -> DoneFile:
        started = time.perf_counter()
        seed_global_generators(context.seed)
        with (
            self.phase("train"),
            tf32(context.training.tf32),
            _save_last_good_on_failure(student, train.parent / "last_good"),
        ):
            self.resources.stop.cost = f"{train.parent.name} begins again, since its adapter keeps no snapshots; "
            try:
                context.measure(0)
                result = adapter.train_stage(context)
            finally:
                self.resources.stop.waited_for, self.resources.stop.cost = False, ""
        seconds = time.perf_counter() - started
        checkpoint = train / "checkpoint" if adapter.updates else start
        if adapter.updates:
            _save_whole(student, checkpoint)
        return DoneFile(
            weights=weights_digest(checkpoint),
            files=files_digest(checkpoint),
            unchanged="" if adapter.updates else str(start.resolve()),
            teacher=None if self.teachers.teacher is None else self.teachers.teacher.identity,
            steps=result.steps,
            seconds=round(seconds, 3),
            prompts=len(context.examples),
        )

    def _curve(self, train: Path, stage: PlannedStage, student: Loaded, engine: Engine) -> Callable[[int], None]:
        """Return what scores the learning curve after a number of steps: at every `evaluation.every`th and at the end."""
        settings = self.suite.evaluation
        if settings.every is None:
            return lambda _: None
        names = dict.fromkeys([*stage.trains, *self.spec.stages[0].trains, *self.resources.evaluated.probes])
        tasks = {name: task for name in names if (task := self.resources.tasks.get(name)) and task.generates}
        items = min(settings.curve_items, settings.limit or settings.curve_items)
        recorder = CurveRecorder(tasks, engine, student.renderer, items, settings.seed, train)

        def measure(steps: int) -> None:
            if self._measures(stage, steps):
                recorder.record(steps)

        return measure

    def _measures(self, stage: PlannedStage, steps: int) -> bool:
        every = self.suite.evaluation.every
        return every is not None and (steps % every == 0 or steps == stage.training.steps)

    def _context(
        self, train: Path, stage: PlannedStage, student: Loaded, weights: str, engine: Engine, keep: Keep
    ) -> StageContext:
        training, index, several = stage.training, stage.index, current_ranks().size > 1
        tasks = {name: self.resources.tasks[name] for name in stage.trains}
        requirements = self.resources.adapter_of(stage).requirements
        past = self._past(index)
        teacher = self._teacher_of(stage, requirements.teacher, student)
        inputs = {"checkpoint": weights, "teacher": teacher.identity if teacher else ""}
        progress = Counter(self.resources.report, self.spec.label, f"stage {index} {stage.name}", training.steps)
        return StageContext(
            student=StudentForward(student.model),
            teacher=teacher,
            engine=FirstProcessEngine(engine) if isinstance(engine, StudentEngine) and several else engine,
            renderer=student.renderer,
            tasks=tasks,
            examples=[e for name in tasks for e in self._items(name, student, training.train_items)],
            training=training,
            seed=derive_seed(self.spec.seed, "stage", index, stage.name),
            device=self.device,
            folder=train,
            log=_step_log(train / "steps.jsonl", progress, self.resources.track, self.spec.steps_before(index)),
            warn=self.resources.warn,
            snapshots=shared_snapshots(FileSnapshots(train, self.suite.snapshot_minutes, inputs, self.resources.stop)),
            keep=keep,
            measure=self._curve(train, stage, student, engine),
            measures=partial(self._measures, stage),
            reference=frozen_copy(student) if requirements.reference else None,
            teacher_engine=self._teacher_engine(teacher, student, training)
            if requirements.teacher == "generate"
            else None,
            past_tasks={name: self.resources.tasks[name] for name, _ in past},
            past=[e for name, limit in past for e in self._items(name, student, limit)],
        )

    def _past(self, index: int) -> list[tuple[str, int | None]]:
        """Return the tasks of all earlier stages, each with how many of its items its own stage trained on.

        Those that another run trained before this one's start come first.
        """
        before = self.suite.origin.trained if self.suite.origin else ()
        earlier = self.spec.stages[: index - 1]
        own = [(name, stage.training.train_items) for stage in earlier for name in stage.trains]
        return [*((task.task, task.items) for task in before), *own]

    def _items(self, task: str, student: Loaded, limit: int | None) -> list[Example]:
        return self.resources.tasks[task].training_examples(student.renderer, limit)

    def _engine(self, student: Loaded, stage: PlannedStage, checkpoint: Path) -> Engine:
        """Return what generates the student's rollouts: this process, or the run's engine with the weights of the moment."""
        engine = self.resources.engine_on(checkpoint)
        if engine is not None:
            return StudentEngine(engine, student.model)
        return HFEngine(student.model, student.renderer.tokenizer, stage.training.generation_batch)

    def _teacher_of(self, stage: PlannedStage, needs: Needs, student: Loaded) -> OpenTeacher | None:
        if stage.teacher is None or needs == "none":
            return None
        with self.phase("models"):
            teacher = self.teachers.take(stage.teacher, student)
        name = f"stage_{stage.index}_teacher" if stage.own_teacher else "teacher"
        if self.resources.weights.setdefault(name, teacher.identity) != teacher.identity:
            raise RunError(
                f"the teacher changed since the run's earlier stages: digest {self.resources.weights[name]}, now "
                f"{teacher.identity}; put the former one back, or choose another --out"
            )
        if isinstance(teacher, LocalTeacher):
            suit_attention(teacher.model, stage.training.autocast)
        return teacher

    def _teacher_engine(self, teacher: OpenTeacher | None, student: Loaded, training: Training) -> Engine | None:
        if teacher is None:
            return None
        if isinstance(teacher, LocalTeacher):
            return HFEngine(teacher.model, student.renderer.tokenizer, training.generation_batch)
        return cast(Engine, teacher)  # a kind that provides `generate` promises it


def _follow(spec: RunSpec, index: int, checkpoint: Path, weights: str, device: str, folder: Path) -> None:
    """Train a stage in a process of its own, on one device."""
    resources = RunResources(replace(spec, suite=spec.suite.model_copy(update={"device": device})), silent)
    StageTrainer(resources).follow(resources.spec.stages[index - 1], checkpoint, weights, folder)


def _save_whole(student: Loaded, folder: Path) -> None:
    """Save a checkpoint; what a full disk left of it goes."""
    try:
        with full_disk_named(folder):
            save_checkpoint(student, folder)
    except RunError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _save_last_good_on_failure(student: Loaded, folder: Path) -> Generator[None]:
    """Save the weights from before the failed update next to the training, which begins again, and say where they are."""
    try:
        yield
    except TrainingError as error:
        if any(weight.untyped_storage().size() == 0 for weight in student.model.parameters()):
            raise  # other processes have parts of the weights
        save_checkpoint(student, folder)
        raise TrainingError(f"{error}; the weights before this update are kept in {folder}") from error


def _as_trained(student: Model, training: Training) -> Model:
    """Return the student as its optimiser steps it: master weights are float32, and so are those that a stage saves.

    Evaluation loads them in the suite's dtype; bfloat16 rounds them to the weights that the stage computed with.
    """
    masters = training.precision == "bfloat16_master"
    return student.model_copy(update={"dtype": "float32"}) if masters else student


def _step_log(path: Path, progress: Counter, track: Log, before: int) -> Callable[[dict[str, Any]], None]:
    """Return what takes a step's line to the step log, the display and the trackers; `before` steps are earlier stages'."""

    def log(step: dict[str, Any]) -> None:
        line = as_record(step, StepLine, "a step that the trainer logged")
        with path.open("a", encoding="utf-8") as file:
            file.write(json_line(line.as_json()))
        figures = {name: figure for name in ("loss", *SHOWN) if (figure := getattr(line, name)) is not None}
        progress.reach(line.step + 1, figures)
        track({"train": step}, before + line.step)

    return log
