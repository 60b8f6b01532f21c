"""Evaluate a checkpoint after a stage: every cell, the groups' scores, the distance from the start, and noise.

What a stage's folder already holds stays as it is, so a run that continues after a kill evaluates only the missing cells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.config.base import digest
from harness.errors import RunError
from harness.evaluation import drift
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import ServedCheckpoint, evaluate_checkpoint
from harness.evaluation.groups import group_cell
from harness.evaluation.keys import PACKAGES, installed_version
from harness.lm.checkpoints import config_digest, load_checkpoint
from harness.lm.seeding import preserved_random_state
from harness.lmeval.task import Task
from harness.pipeline.resources import RunResources, sampled_cells
from harness.rundir.files import read_cell, read_results, write_cell, written
from harness.rundir.process.progress import Counter, Event
from harness.rundir.records.cell_records import DRIFT_FIGURES, DriftSummary, StartAnswers
from harness.rundir.stage_folder import StageFolder


class StageEvaluator:
    """Evaluates the checkpoints of one run; the start's answers, which all of them use, are read once."""

    def __init__(self, resources: RunResources, start_folder: StageFolder) -> None:
        self.resources, self.spec, self.suite = resources, resources.spec, resources.suite
        self.settings, self.shared = resources.suite.evaluation, SharedCells(resources.spec.out)
        self.start_folder = start_folder

    def evaluate(self, folder: StageFolder, checkpoint: Path, when: str) -> None:
        """Evaluate all that `folder` does not hold yet; the display shows `when`, such as `after tiny_weather`.

        Raises `RunError` where a stored cell was answered by other weights than the stage's checkpoint has.
        """
        self._refuse_other_weights(folder)
        if self._holds_all(folder):
            return
        weights = self.resources.verify(checkpoint, _weights_name(folder))
        student, engine = self.suite.student, self.resources.engine_on(checkpoint)
        served = ServedCheckpoint(checkpoint, weights, student.chat, student.dtype, self.resources.device, engine)
        with self.resources.phase("evaluate"):
            self._cells(folder, served, when)
            self._groups(folder)
            if folder == self.start_folder:
                self._noise(folder, served)
            if self.settings.drift is not None and not written(folder.drift):
                self._drift(folder, served)
        done = Event(self.spec.label, f"evaluated {when}", 1, 1, evaluated=_stage_index(folder))
        self.resources.report(done)

    def _refuse_other_weights(self, folder: StageFolder) -> None:
        weights = self.resources.weights[_weights_name(folder)]
        for cell in map(folder.cell, (*self.resources.cells, *self.resources.evaluated.groups)):
            summary = read_results(cell)
            if summary is not None and summary.weights not in ("", weights):
                raise RunError(
                    f"{cell} was answered by the weights {summary.weights}, but the stage's checkpoint has {weights}; move "
                    "the folder away and run the same command, to evaluate again"
                )

    def _holds_all(self, folder: StageFolder) -> bool:
        cells = [*self.resources.cells, *self.resources.evaluated.groups]
        complete = all(map(folder.evaluated, cells)) and (self.settings.drift is None or written(folder.drift))
        return complete and (folder != self.start_folder or not any(map(self._missing_noise, self._repeats)))

    def _cells(self, folder: StageFolder, served: ServedCheckpoint, when: str) -> None:
        missing = [task for name, task in self.resources.cells.items() if not folder.evaluated(name)]
        if not missing:
            return
        progress = Counter(self.resources.report, self.spec.label, f"evaluate {when}", len(missing))
        cells = evaluate_checkpoint(served, missing, self.resources.library, self.settings, self.shared, progress.next)
        for name, cell in cells.items():
            self._write(folder, folder.cell(name), self.resources.cells[name].profile, cell)
        self._track(folder, "score", {name: cell.summary.score for name, cell in cells.items()})

    def _groups(self, folder: StageFolder) -> None:
        for name, group in self.resources.evaluated.groups.items():
            if not folder.evaluated(name):
                members = {task: _stored(folder, cell) for task, cell in group.members().items()}
                self._write(folder, folder.cell(name), group.profile, group_cell(group, members))

    def _noise(self, folder: StageFolder, served: ServedCheckpoint) -> None:
        """Evaluate the start's sampled cells again, each time with another seed of the engine."""
        for repeat in self._repeats:
            if not (missing := self._missing_noise(repeat)):
                continue
            settings = self.settings.model_copy(update={"seed": self.settings.seed + repeat})
            progress = Counter(self.resources.report, self.spec.label, f"noise {repeat}", len(missing))
            cells = evaluate_checkpoint(served, missing, self.resources.library, settings, self.shared, progress.next)
            for name, cell in cells.items():
                self._write(folder, folder.noise(name, repeat), self.resources.cells[name].profile, cell)

    @property
    def _repeats(self) -> range:
        return range(1, self.settings.noise_floor + 1)

    def _missing_noise(self, repeat: int) -> list[Task]:
        sampled = sampled_cells(self.resources.cells)
        return [task for name, task in sampled.items() if not written(self.start_folder.noise(name, repeat))]

    def _drift(self, folder: StageFolder, served: ServedCheckpoint) -> None:
        assert self.settings.drift is not None
        started = time.perf_counter()
        start = self.resources.weights["start"]
        same = served.weights == start and served.config == config_digest(self.resources.start)
        with preserved_random_state():
            rows = drift.measure_drift(
                self.resources.start, served.folder, self.suite.student, self.resources.device, self.answers, same
            )
        summary = drift.summarise_drift(rows, self.answers, self.settings.drift, started)
        if folder == self.start_folder:
            rows = pd.concat([drift.to_frame(self.answers), rows.drop(columns=["task", "item_id"])], axis=1)
        place = {"stage": _stage_index(folder), "weights": served.weights, "start": start}
        write_cell(folder.drift, summary.model_copy(update=place), rows)
        self._track(folder, "drift", {name: getattr(summary, name) for name in DRIFT_FIGURES})

    @cached_property
    def answers(self) -> list[drift.DriftAnswers]:
        """The start's answers to the fixed prompts: this run's, else those of a run with the same start, else new ones."""
        if (own := read_cell(self.start_folder.drift, DriftSummary)) is not None:
            return drift.from_frame(own[1])
        assert self.settings.drift is not None
        with preserved_random_state():
            start = load_checkpoint(self.resources.start, self.suite.student, self.resources.device)
            tasks = drift.select_tasks(self._generating(), self.settings, self.settings.drift)
            asked = {name: task.asked(task.test_docs(count), start.renderer) for name, (task, count) in tasks.items()}
            key = self._answers_key(start.renderer.identity, asked, tasks)
            with self.shared.locked(self.resources.weights["start"]):
                if (found := read_cell(self.shared.folder / f"start-{key}", StartAnswers)) is not None:
                    return drift.from_frame(found[1])
                drawn = drift.draw_answers(start, tasks, self.settings, self.settings.drift)
                write_cell(self.shared.folder / f"start-{key}", StartAnswers(key=key), drift.to_frame(drawn))
                return drawn

    def _answers_key(
        self, renderer: str, asked: Mapping[str, Sequence[str]], tasks: Mapping[str, tuple[Task, int]]
    ) -> str:
        assert self.settings.drift is not None
        budgets = {name: task.generation["max_gen_toks"] for name, (task, _) in tasks.items()}
        versions = [installed_version(name) for name in PACKAGES]
        made_with = [self.resources.device, self.suite.student.dtype, self.settings.batch_size, versions]
        settings = [self.settings.drift.model_dump(), self.settings.seed, budgets]
        model = [self.resources.weights["start"], config_digest(self.resources.start)]
        return digest([model, renderer, dict(asked), settings, made_with])

    def _generating(self) -> Iterator[Task]:
        """Return the tasks whose prompts the start answers; the tasks of groups, which may be many, are left out."""
        hidden = self.resources.evaluated.in_groups()
        return (task for task in self.resources.tasks.values() if task.generates and task.name not in hidden)

    def _track(self, folder: StageFolder, what: str, figures: dict[str, float]) -> None:
        self.resources.track({what: figures}, self.spec.steps_before(_stage_index(folder) + 1))

    def _write(self, folder: StageFolder, place: Path, profile: str, cell: CellResult) -> None:
        """Write a cell with its stage and, where the suite has profiles, the name of its profile."""
        profiles = self.settings.profiles
        named = {"profile": profile or next(iter(profiles))} if profiles else {}
        found = {"stage": _stage_index(folder), **named}
        write_cell(place, cell.summary.model_copy(update=found), cell.samples)


def _stored(folder: StageFolder, cell: str) -> CellResult:
    found = read_cell(folder.cell(cell))
    if found is None:
        raise RunError(f"{folder.cell(cell)} is gone; run the command again to evaluate it again")
    return CellResult(*found)


def _weights_name(folder: StageFolder) -> str:
    index = _stage_index(folder)
    return f"stage_{index}" if index else "start"


def _stage_index(folder: StageFolder) -> int:
    return int(folder.path.name.split("_")[1])
