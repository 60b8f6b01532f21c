"""Build what an adapter gets for one stage, the `StageContext`: models, engine, data, budget and records."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from harness.adapter import StageContext, trainer_of
from harness.config.run_spec import PlannedStage
from harness.config.teacher_identity import same_teacher
from harness.config.teacher_settings import Needs
from harness.config.training import Training
from harness.engines.engine import Engine
from harness.engines.first_process import FirstProcessEngine
from harness.engines.hf import HFEngine
from harness.engines.student import StudentEngine
from harness.errors import RunError
from harness.evaluation.learning_curve import CurveRecorder
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import StudentForward
from harness.lm.precision import suit_attention
from harness.lm.ranks import current_ranks
from harness.lm.rollouts import Example
from harness.lm.seeding import derive_seed
from harness.pipeline.resources import RunResources
from harness.rundir.files import STEPS, as_record, json_line
from harness.rundir.process.progress import METRIC_NAMES, Counter
from harness.rundir.process.trackers import Log
from harness.rundir.records.training_records import StepLine
from harness.rundir.stage_folder import cell_name
from harness.rundir.training.rollout_log import Keep
from harness.rundir.training.snapshots import FileSnapshots, Uploads, shared_snapshots
from harness.teachers.local import LocalTeacher, frozen_copy
from harness.teachers.teacher import OpenTeacher


class ContextBuilder:
    """Builds the contexts of one run's stages."""

    def __init__(self, resources: RunResources) -> None:
        self.resources, self.spec, self.suite = resources, resources.spec, resources.suite

    def engine(self, stage: PlannedStage, student: Loaded, checkpoint: Path) -> Engine:
        """Return what generates the student's rollouts: the run's engine on the student's present weights, or this process."""
        engine = self.resources.engine_on(checkpoint)
        if engine is not None:
            return StudentEngine(engine, student.model)
        return HFEngine(student.model, student.renderer.tokenizer, stage.training.generation_batch)

    def build(
        self,
        stage: PlannedStage,
        folder: Path,
        student: Loaded,
        weights: str,
        engine: Engine,
        keep: Keep,
        uploads: Uploads | None = None,
    ) -> StageContext:
        """Return a stage's context; `weights` is the digest of the checkpoint that `student` was loaded from.

        `folder` takes what the stage writes, `keep` its rollouts, `uploads` its snapshots. Raises `RunError` for a teacher
        that changed since the run's earlier stages.
        """
        training, index, several = stage.training, stage.index, current_ranks().size > 1
        tasks = {name: self.resources.tasks[name] for name in stage.trains}
        requirements = trainer_of(self.spec, stage).requirements
        past = self._past(stage)
        teacher = self._teacher(stage, requirements.teacher, student)
        inputs = {"checkpoint": weights, "teacher": teacher.identity if teacher else ""}
        stop, minutes = self.resources.stop, self.suite.snapshot_minutes
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
            device=self.resources.device,
            folder=folder,
            log=_step_log(folder / STEPS, progress, self.resources.track, self.spec.steps_before(index)),
            warn=self.resources.warn,
            snapshots=shared_snapshots(FileSnapshots(folder, minutes, inputs, stop, uploads)),
            keep=keep,
            measure=self._curve(stage, folder, student, engine),
            measures=partial(self._is_due, stage),
            reference=frozen_copy(student) if requirements.reference else None,
            teacher_engine=_teacher_engine(teacher, student, training) if requirements.teacher == "generate" else None,
            past_tasks={name: self.resources.task(name) for name in past},
            past=[e for name, limit in past.items() for e in self._items(name, student, limit)],
        )

    def _past(self, stage: PlannedStage) -> dict[str, int | None]:
        """Return the tasks of all earlier stages, with how many of their items were trained on; None for all.

        The tasks that another run trained before this run's start come first. Tasks that the stage itself trains are left out.
        """
        before = self.suite.origin.trained if self.suite.origin else ()
        earlier = self.spec.stages[: stage.index - 1]
        own = [(name, done.training.train_items) for done in earlier for name in done.trains]
        past: dict[str, int | None] = {}
        for name, items in [*((task.task, task.items) for task in before), *own]:
            known = past.get(name, 0)
            past[name] = None if items is None or known is None else max(items, known)
        return {name: items for name, items in past.items() if name not in stage.trains}

    def _items(self, task: str, student: Loaded, limit: int | None) -> list[Example]:
        return self.resources.task(task).training_examples(student.renderer, limit)

    def _teacher(self, stage: PlannedStage, needs: Needs, student: Loaded) -> OpenTeacher | None:
        if stage.teacher is None or needs == "none":
            return None
        with self.resources.phase("models"):
            teacher = self.resources.teachers.take(stage.teacher, student)
        name = stage.teacher_name
        if not same_teacher(former := self.resources.weights.get(name, teacher.identity), teacher.identity):
            raise RunError(
                f"the teacher changed since the run's earlier stages: digest {former}, now {teacher.identity}; put the former "
                "one back, or choose another --out"
            )
        self.resources.weights[name] = teacher.identity
        if isinstance(teacher, LocalTeacher):
            suit_attention(teacher.model, stage.training.autocast)
        return teacher

    def _curve(self, stage: PlannedStage, folder: Path, student: Loaded, engine: Engine) -> Callable[[int], None]:
        """Return a function of the steps done that scores the learning curve where a point is due."""
        settings = self.suite.evaluation
        if settings.every is None:
            return lambda _: None
        names = dict.fromkeys([*stage.trains, *self.spec.stages[0].trains, *self.resources.evaluated.probes])
        first, profile = next(iter(settings.all_profiles)), settings.profile_of_curves
        found = {name: self.resources.cells.get(cell_name(name, "" if profile == first else profile)) for name in names}
        tasks = {name: task for name, task in found.items() if task and task.generates}
        items = min(settings.curve_items, settings.limit or settings.curve_items)
        recorder = CurveRecorder(tasks, engine, student.renderer, items, settings.seed, folder, settings.curve_answers)

        def measure(steps: int) -> None:
            if self._is_due(stage, steps):
                recorder.record(steps)

        return measure

    def _is_due(self, stage: PlannedStage, steps: int) -> bool:
        """Whether the learning curve has a point after `steps` steps: every `evaluation.every` steps, and at the end."""
        every = self.suite.evaluation.every
        return every is not None and (steps % every == 0 or steps == stage.training.steps)


def _teacher_engine(teacher: OpenTeacher | None, student: Loaded, training: Training) -> Engine | None:
    if teacher is None:
        return None
    if isinstance(teacher, LocalTeacher):
        return HFEngine(teacher.model, student.renderer.tokenizer, training.generation_batch)
    return cast(Engine, teacher)  # a kind of teacher that lists `generate` has the engine's method


def _step_log(path: Path, progress: Counter, track: Log, before: int) -> Callable[[dict[str, Any]], None]:
    """Return a function that sends a step's line to the step log, the display and the trackers.

    `before` is the number of steps of earlier stages: trackers count steps over the whole run.
    """

    def log(step: dict[str, Any]) -> None:
        line = as_record(step, StepLine, "a step that the trainer logged")
        with path.open("a", encoding="utf-8") as file:
            file.write(json_line(line.as_json()))
        figures = {name: figure for name in ("loss", *METRIC_NAMES) if (figure := getattr(line, name)) is not None}
        progress.reach(line.step + 1, figures)
        track({"train": step}, before + line.step)

    return log
