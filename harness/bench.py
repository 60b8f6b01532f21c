"""What a run works with: its tasks, adapter and models, each loaded when first needed, and how a stage is evaluated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.adapter import Adapter, make_adapter
from harness.checkpoints import context_of, load_renderer, weights_digest
from harness.config import Model, digest
from harness.errors import RunError
from harness.lmeval.checks import check_prompts, check_stage_task, check_test_prompts
from harness.lmeval.evaluate import Subject, evaluate
from harness.lmeval.groups import Evaluated, group_cell, load_evaluated
from harness.lmeval.overlap import stream_overlap
from harness.lmeval.profiles import tasks_by_profile
from harness.lmeval.shared import Cell, SharedCells
from harness.lmeval.tasks import BenchTask, TaskLibrary
from harness.models import checkpoint_of, limit_threads, resolve_device
from harness.progress import Counter, Event, Report
from harness.spec import RunSpec
from harness.store import StageFolder, read_cell, write_cell
from harness.timing import Timer

log = logging.getLogger(__name__)


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

    @cached_property
    def evaluated(self) -> Evaluated:
        """What is evaluated: tasks and groups under every profile, with their generation settings settled."""
        return load_evaluated(self.library, self.suite)

    @property
    def cells(self) -> dict[str, BenchTask]:
        """The tasks under every profile, by cell name."""
        return self.evaluated.cells

    @cached_property
    def tasks(self) -> dict[str, BenchTask]:
        """The tasks under the suite's first profile."""
        return self.evaluated.tasks

    @cached_property
    def start(self) -> Path:
        """The student's checkpoint before any stage."""
        with self.timer("models"):
            return self.checkpoint_of(self.suite.student)

    def describe(self) -> dict[str, Any]:
        """Return the part of the manifest that says what this run is."""
        config = self.spec.config()
        evaluation = self.suite.evaluation
        named = [*self.cells.values(), *self.evaluated.groups.values()]
        profiles = {"profiles": tasks_by_profile(named, evaluation)} if evaluation.profiles else {}
        return {
            "suite": self.suite.name,
            "adapter": self.spec.entry,
            "adapter_config": self.adapter.model_dump(mode="json"),
            "order": self.spec.order,
            "stages": [{"name": stage.task, "trains": list(stage.trains)} for stage in self.spec.stages],
            "probes": list(self.evaluated.probes),
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
            self.warn(found.warning)
        return found.as_dict()

    def evaluate(self, folder: StageFolder, checkpoint: Path, when: str) -> None:
        """Evaluate all tasks under all profiles that `folder` does not hold yet."""
        missing = [task for name, task in self.cells.items() if not folder.evaluated(name)]
        if missing:
            self._evaluate(folder, checkpoint, when, missing)
        for name, group in self.evaluated.groups.items():
            if not folder.evaluated(name):
                cell = group_cell(group, {task: stored(folder, cell) for task, cell in group.members().items()})
                write_cell(folder.cell(name), {**cell.summary, **self._place(folder, group.profile)}, cell.samples)

    def _evaluate(self, folder: StageFolder, checkpoint: Path, when: str, missing: Sequence[BenchTask]) -> None:
        subject = Subject(
            checkpoint, weights_digest(checkpoint), self.suite.student.chat, self.suite.student.dtype, self.device
        )
        progress = Counter(self.report, self.spec.label, f"evaluate {when}", len(missing))
        shared = SharedCells(self.spec.out)
        with self.timer("evaluate"):
            cells = evaluate(subject, missing, self.library, self.suite.evaluation, shared, progress.next)
        for name, cell in cells.items():
            place = self._place(folder, self.cells[name].profile)
            write_cell(folder.cell(name), {**cell.summary, **place}, cell.samples)

    def _place(self, folder: StageFolder, profile: str) -> dict[str, Any]:
        """Return where a cell stands in the run: its stage, and its profile where the suite has any."""
        profiles = self.suite.evaluation.profiles
        stage = {"stage": int(folder.path.name.split("_")[1])}
        return {**stage, "profile": profile or next(iter(profiles))} if profiles else stage

    def checkpoint_of(self, spec: Model) -> Path:
        """Return the folder of a model of this run, built or fetched where it is not there."""
        return checkpoint_of(spec, self.spec.seed, self.library, self._building)

    def warn(self, sentence: str) -> None:
        """Tell the user a sentence, and the run's log."""
        log.warning("%s: %s", self.spec.label, sentence)
        self.report(Event(self.spec.label, sentence, warning=True))

    def _building(self, what: str, done: int, total: int) -> None:
        self.report(Event(self.spec.label, f"build {what}", done, total))


def stored(folder: StageFolder, cell: str) -> Cell:
    """Return an evaluated cell of a stage."""
    found = read_cell(folder.cell(cell))
    if found is None:
        raise RunError(f"{folder.cell(cell)} is gone; run the command again to evaluate it anew")
    return Cell(*found)
