"""The staged loop: prepare, evaluate the start, then adapt and evaluate, stage after stage.

Each stage is a function of the checkpoint before it, the run's seed and the suite, and ends on disk; so a killed run
continues from its last finished stage and ends with the numbers of an undisturbed one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.adapter import Adapter, StageContext, make_adapter
from harness.checkpoints import Loaded, context_of, load, load_renderer, save, weights_digest
from harness.config import Model, Stage, Suite, Training, digest, merge
from harness.engines.base import Engine
from harness.engines.hf import HFEngine
from harness.errors import TrainingError
from harness.lmeval.checks import check_prompts, check_stage_task, check_test_prompts
from harness.lmeval.evaluate import Subject, evaluate
from harness.lmeval.overlap import stream_overlap
from harness.lmeval.profiles import tasks_by_profile, under_profiles
from harness.lmeval.shared import SharedCells
from harness.lmeval.tasks import BenchTask, TaskLibrary
from harness.logprobs import StudentForward
from harness.manifest import environment, now
from harness.models import checkpoint_of, limit_threads, resolve_device
from harness.precision import suit_attention
from harness.progress import Counter, Event, Report, silent
from harness.rollouts import Example
from harness.seeding import derive_seed, seed_global_generators
from harness.snapshots import FileSnapshots
from harness.store import RunStore, StageFolder, cell_name, stderr_to, write_cell, write_json
from harness.teachers.local import LocalTeacher, TeacherShelf, frozen_copy
from harness.timing import Timer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSpec:
    """One run: a suite, one of its adapter entries, an order of stages and a seed."""

    suite: Suite
    entry: str
    seed: int
    order: str = "default"
    out: Path = Path("runs")

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.out / self.suite.name / self.entry / self.order / f"seed{self.seed}"

    @property
    def label(self) -> str:
        """The run's short name on the terminal."""
        order = "" if self.order == "default" else f" {self.order}"
        return f"{self.suite.name} {self.entry}{order} seed {self.seed}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in this run's order."""
        return self.suite.ordered_stages(self.order)

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks that the stages train, in this run's order."""
        return tuple(task for stage in self.stages for task in stage.trains)

    def config(self) -> dict[str, Any]:
        """Return all that decides this run's numbers, and nothing of its siblings."""
        apart = {"adapters", "seeds", "orders", "description", "snapshot_minutes", "trackers"}
        suite = self.suite.model_dump(mode="json", exclude=apart)
        if profiles := suite["evaluation"].get("profiles"):
            # A hash knows no order of keys, and the first profile is the one whose scores are the suite's.
            suite["evaluation"]["profiles"] = [{"name": name, **profile} for name, profile in profiles.items()]
        entry = self.suite.adapters[self.entry]
        adapter = {**entry.model_dump(mode="json"), "adapter": entry.adapter or self.entry}
        own = {"adapter": adapter, "seed": self.seed}
        return merge(suite, {**own, "stages": [stage.model_dump(mode="json") for stage in self.stages]})


def run(spec: RunSpec, report: Report = silent) -> Path:
    """Do a run, or what is left of it, and return its directory; a finished run is left alone."""
    store = RunStore(spec.path)
    with store.locked(), stderr_to(spec.path / "log.txt"):
        if is_finished(spec):
            return spec.path
        bench = Bench(spec, report)
        session = environment()
        manifest = {**bench.describe(), **session, "sessions": [], "finished": None}
        store.refuse_another(manifest)
        bench.check()
        store.start({**manifest, "overlap": bench.overlap()})
        store.update_manifest(lambda found: {**found, "sessions": [*found["sessions"], session]})
        checkpoint = bench.start
        bench.weights["start"] = weights_digest(checkpoint)
        bench.evaluate(store.stage(0, None), checkpoint, "start")
        for index, stage in enumerate(spec.stages, start=1):
            folder = store.stage(index, stage.task)
            checkpoint = bench.adapt(folder, stage, index, checkpoint)
            bench.evaluate(folder, checkpoint, f"after {stage.task}")
            store.update_manifest(bench.progress)
        store.update_manifest(lambda found: {**bench.progress(found), "finished": now()})
    report(Event(spec.label, "done", 1, 1, finished=True))
    return spec.path


def is_finished(spec: RunSpec) -> bool:
    """Return whether a run's directory holds all of it, made by the same configuration."""
    store = RunStore(spec.path)
    manifest = store.manifest or {}
    if not manifest.get("finished") or manifest["config_hash"] != digest(spec.config()):
        return False
    folders = [store.stage(0, None), *(store.stage(i, stage.task) for i, stage in enumerate(spec.stages, start=1))]
    trained = all(folder.training_done for folder in folders[1:])
    cells = [*spec.suite.tasks, *_further_cells(manifest.get("profiles") or {})]
    return trained and all(folder.evaluated(cell) for folder in folders for cell in cells)


def _further_cells(profiles: Mapping[str, list[str]]) -> list[str]:
    """Return the cells of all profiles but the first; which tasks have any is known once tasks were loaded."""
    return [cell_name(task, name) for name in list(profiles)[1:] for task in profiles[name]]


class Bench:
    """What a run works with: tasks, adapter, models, all loaded when first needed."""

    def __init__(self, spec: RunSpec, report: Report) -> None:
        limit_threads(spec.suite.threads)
        self.spec, self.suite, self.report = spec, spec.suite, report
        self.device = resolve_device(self.suite.device)
        self.library = TaskLibrary(self.suite.include, self.suite.data)
        self.adapter: Adapter = make_adapter(spec.entry, self.suite.adapters[spec.entry])
        self.weights: dict[str, str] = {}
        self.timer = Timer("models", "train", "evaluate", whole="total")
        self.teachers = TeacherShelf(self.device, self._teacher_checkpoint)

    @cached_property
    def cells(self) -> dict[str, BenchTask]:
        """What is evaluated, by cell name: the tasks under every profile, with their generation settings settled."""
        return under_profiles(map(self.library.load, self.suite.tasks), self.suite.evaluation)

    @property
    def tasks(self) -> dict[str, BenchTask]:
        """The tasks under the suite's first profile."""
        return {task.name: task for task in self.cells.values() if not task.profile}

    @cached_property
    def start(self) -> Path:
        """The student's checkpoint before any stage."""
        with self.timer("models"):
            return checkpoint_of(self.suite.student, self.spec.seed, self.library, self._building)

    def describe(self) -> dict[str, Any]:
        """Return the part of the manifest that says what this run is."""
        config = self.spec.config()
        evaluation = self.suite.evaluation
        profiles = {"profiles": tasks_by_profile(self.cells.values(), evaluation)} if evaluation.profiles else {}
        return {
            "suite": self.suite.name,
            "adapter": self.spec.entry,
            "adapter_config": self.adapter.model_dump(mode="json"),
            "order": self.spec.order,
            "stages": [{"name": stage.task, "trains": list(stage.trains)} for stage in self.spec.stages],
            "probes": list(self.suite.probes),
            **profiles,
            "seed": self.spec.seed,
            "start": getattr(self.suite.student, "strength", None),
            "config": config,
            "config_hash": digest(config),
            "weights": {},
        }

    def progress(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return a manifest with what is known of it by now: the weights, and this session's seconds by phase."""
        *before, session = found["sessions"]
        sessions = [*before, {**session, "seconds": self.timer.seconds}]
        return {**found, "weights": {**found["weights"], **self.weights}, "sessions": sessions}

    def check(self) -> None:
        """Refuse what would fail or be cut silently hours later: tasks that cannot be stages, prompts that do not fit."""
        for name in self.spec.trained:
            check_stage_task(self.tasks[name])
        renderer = load_renderer(self.start, self.suite.student)
        context = context_of(self.start)
        check_prompts(self.suite, self.spec.stages, self.tasks, renderer, context, self.spec.entry)
        further = [task for task in self.cells.values() if task.profile]
        check_test_prompts(further, renderer, context, self.suite.evaluation.limit)

    def overlap(self) -> dict[str, Any]:
        """Return how training prompts overlap with test prompts, for the manifest; say so where they are the same."""
        found = stream_overlap(self.suite, self.spec.entry, self.spec.order, self.tasks, self.library)
        if found.warning is not None:
            self._warn(found.warning)
        return found.as_dict()

    def adapt(self, folder: StageFolder, stage: Stage, index: int, checkpoint: Path) -> Path:
        """Train one stage from `checkpoint`, unless it is trained already, and return the new checkpoint."""
        if (done := folder.training_done) is None:
            train = folder.open_training()
            with self.timer("models"):
                student = load(checkpoint, self.suite.student, self.device)
                suit_attention(student.model, self.suite.training_for(stage, self.spec.entry).autocast)
            done = self._train(train, stage, index, student)
            write_json(train / "done.json", done)
            FileSnapshots(train, None).clear()
        self.weights[f"stage_{index}"] = done["weights"]
        if done["teacher"] is not None:
            self.weights["teacher" if stage.teacher is None else f"stage_{index}_teacher"] = done["teacher"]
        return folder.checkpoint

    def evaluate(self, folder: StageFolder, checkpoint: Path, when: str) -> None:
        """Evaluate all tasks under all profiles that `folder` does not hold yet."""
        missing = [task for name, task in self.cells.items() if not folder.evaluated(name)]
        if not missing:
            return
        subject = Subject(
            checkpoint, weights_digest(checkpoint), self.suite.student.chat, self.suite.student.dtype, self.device
        )
        progress = Counter(self.report, self.spec.label, f"evaluate {when}", len(missing))
        shared = SharedCells(self.spec.out)
        with self.timer("evaluate"):
            cells = evaluate(subject, missing, self.library, self.suite.evaluation, shared, progress.next)
        for name, cell in cells.items():
            place = {"stage": _stage_index(folder), **self._profile(self.cells[name])}
            write_cell(folder.cell(name), {**cell.summary, **place}, cell.samples)

    def _profile(self, task: BenchTask) -> dict[str, str]:
        profiles = self.suite.evaluation.profiles
        return {"profile": task.profile or next(iter(profiles))} if profiles else {}

    def _train(self, train: Path, stage: Stage, index: int, student: Loaded) -> dict[str, Any]:
        started = time.perf_counter()
        context = self._context(train, stage, index, student)
        seed_global_generators(context.seed)
        with self.timer("train"), _kept_when_it_breaks(student, train / "last_good"):
            result = self.adapter.train_stage(context)
        seconds = time.perf_counter() - started
        save(student, train / "checkpoint")
        return {
            "weights": weights_digest(train / "checkpoint"),
            "teacher": None if self.teachers.held is None else self.teachers.held.weights,
            "steps": result.steps,
            "seconds": round(seconds, 3),
            "prompts": len(context.examples),
        }

    def _context(self, train: Path, stage: Stage, index: int, student: Loaded) -> StageContext:
        training = self.suite.training_for(stage, self.spec.entry)
        tasks = {name: self.tasks[name] for name in stage.trains}
        past = {name: self.tasks[name] for earlier in self.spec.stages[: index - 1] for name in earlier.trains}
        teacher = self._teacher_of(stage, student)
        progress = Counter(self.report, self.spec.label, f"stage {index} {stage.task}", training.steps)
        return StageContext(
            student=StudentForward(student.model),
            teacher=teacher,
            engine=HFEngine(student.model, student.renderer.tokenizer, training.generation_batch),
            renderer=student.renderer,
            tasks=tasks,
            examples=_training_items(tasks, student, training),
            training=training,
            seed=derive_seed(self.spec.seed, "stage", index, stage.task),
            device=self.device,
            folder=train,
            log=_step_log(train / "steps.jsonl", progress),
            warn=self._warn,
            snapshots=FileSnapshots(train, self.suite.snapshot_minutes),
            reference=frozen_copy(student) if self.adapter.requirements.reference else None,
            teacher_engine=self._teacher_engine(teacher, student, training),
            past_tasks=past,
            past=_training_items(past, student, training),
        )

    def _teacher_of(self, stage: Stage, student: Loaded) -> LocalTeacher | None:
        spec = stage.teacher or self.suite.teacher
        if spec is None or self.adapter.requirements.teacher == "none":
            return None
        with self.timer("models"):
            teacher = self.teachers.take(spec, student)
        suit_attention(teacher.model, self.suite.training_for(stage, self.spec.entry).autocast)
        return teacher

    def _teacher_engine(self, teacher: LocalTeacher | None, student: Loaded, training: Training) -> Engine | None:
        if teacher is None or self.adapter.requirements.teacher != "generate":
            return None
        return HFEngine(teacher.model, student.renderer.tokenizer, training.generation_batch)

    def _teacher_checkpoint(self, spec: Model) -> Path:
        return checkpoint_of(spec, self.spec.seed, self.library, self._building)

    def _warn(self, sentence: str) -> None:
        log.warning("%s: %s", self.spec.label, sentence)
        self.report(Event(self.spec.label, sentence, warning=True))

    def _building(self, what: str, done: int, total: int) -> None:
        self.report(Event(self.spec.label, f"build {what}", done, total))


def _training_items(tasks: Mapping[str, BenchTask], student: Loaded, training: Training) -> list[Example]:
    return [e for task in tasks.values() for e in task.training_examples(student.renderer, training.train_items)]


@contextmanager
def _kept_when_it_breaks(student: Loaded, folder: Path) -> Generator[None]:
    """Save the weights of before the step that failed, and say where they are."""
    try:
        yield
    except TrainingError as error:
        save(student, folder)
        raise TrainingError(f"{error}; the weights before this step are kept in {folder}") from error


def _step_log(path: Path, progress: Counter) -> Callable[[dict[str, Any]], None]:
    def log(step: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step) + "\n")
        progress.reach(int(step["step"]) + 1)

    return log


def _stage_index(folder: StageFolder) -> int:
    return int(folder.path.name.split("_")[1])
