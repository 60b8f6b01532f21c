"""One run's evaluations under a profile and grader, and one side of a comparison: a figure's terms in that run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.errors import RunError
from harness.rundir.files import read_results
from harness.rundir.reader import RunDir, read_parquet
from harness.rundir.records.cell_records import CellSummary
from harness.rundir.stage_folder import cell_name
from harness.stats.score_matrix import Figure, ScoreMatrix, Term
from reports.data.cells import CellRef, cell_at


@dataclass(frozen=True)
class RunScores:
    """The cells of one run under one profile and grader; files are read once and kept."""

    run: RunDir
    name: str
    profile: str = ""
    grader: str = ""
    _cells: dict[tuple[str, int], CellRef] = field(default_factory=dict[tuple[str, int], CellRef], compare=False)
    _samples: dict[tuple[str, int], pd.DataFrame] = field(
        default_factory=dict[tuple[str, int], pd.DataFrame], compare=False
    )
    _items: dict[tuple[str, int], pd.Series] = field(default_factory=dict[tuple[str, int], pd.Series], compare=False)

    @cached_property
    def matrix(self) -> ScoreMatrix:
        """The run's scores by stage and task; a cell that is missing is nan."""
        tasks = self.run.tasks_under(self.profile)
        trained = {task: stage for stage, names in enumerate(self.run.trains, start=1) for task in names}
        own = {task: stage for task, stage in trained.items() if task in tasks}
        probes = [task for task in tasks if task not in own]
        stages = range(len(self.run.stages) + 1)
        scores = [[self.score(task, stage) for task in (*own, *probes)] for stage in stages]
        return ScoreMatrix(
            np.array(scores, dtype=float),
            tuple(own),
            tuple(probes),
            tuple(own.values()),
            fixed=self.run.manifest.fixed_tasks,
            before=self.run.manifest.trained_before_start,
        )

    def cell(self, task: str, stage: int) -> CellRef:
        """Return a task's evaluation after a stage; its results are None where it has not been evaluated."""
        if (task, stage) not in self._cells:
            self._cells[task, stage] = cell_at(self.run, self.name, stage, task, self.profile, self.grader)
        return self._cells[task, stage]

    def score(self, task: str, stage: int) -> float:
        """Return a cell's score, nan where it is missing."""
        results = self.cell(task, stage).results
        return math.nan if results is None else results.score

    def samples(self, task: str, stage: int) -> pd.DataFrame | None:
        """Return the graded answers of a cell; None where they were not kept."""
        if (task, stage) not in self._samples:
            file = self.cell(task, stage).answers
            if not file.is_file():
                return None
            columns = ["item_id", "prompt", "target", "score", "cluster"]
            self._samples[task, stage] = read_parquet(file, columns)
        return self._samples[task, stage]

    def items(self, task: str, stage: int) -> pd.Series | None:
        """Return a cell's score by item, the mean over an item's answers; None where answers were not kept."""
        if (task, stage) not in self._items:
            samples = self.samples(task, stage)
            if samples is None:
                return None
            self._items[task, stage] = samples.groupby("item_id", sort=False)["score"].mean()
        return self._items[task, stage]

    def clusters(self, task: str, stage: int) -> Mapping[Any, str]:
        """Return each item's cluster of dependent items; empty for evaluations without clusters."""
        samples = self.samples(task, stage)
        if samples is None or "cluster" not in samples:
            return {}
        return samples.drop_duplicates("item_id").set_index("item_id")["cluster"].astype(str).to_dict()

    def repeated(self, task: str) -> list[CellSummary]:
        """Return the results of a task's further evaluations at the start, with other seeds of the engine."""
        folder = self.run.stage(0).path / "noise" / cell_name(task, self.profile)
        found = map(read_results, sorted(folder.glob("*")))
        first = self.cell(task, 0).results
        return [each for each in found if each is not None and first is not None and each.metric == first.metric]

    def side(self, figure: Figure, last: int, task: str = "") -> Side:
        """Return a figure's terms of this run, or of one of its tasks, as if `last` were the last stage."""
        matrix = self.matrix.up_to(last)
        return Side(self, figure.terms(matrix, task), figure.offsets(matrix, task))


class Side(NamedTuple):
    """One side of a pair: a run's evaluations, the weighted cells to add up, and a constant that no cell contributes."""

    evaluations: RunScores
    terms: Sequence[Term]
    offset: float = 0.0

    @property
    def value(self) -> float:
        """The weighted sum in 0..1, nan where a cell is missing or there is no term."""
        scores = [term.weight * self.evaluations.score(term.task, term.stage) for term in self.terms]
        return sum(scores) + self.offset if scores else math.nan

    @property
    def tasks(self) -> dict[str, list[Term]]:
        """The terms by task, in order."""
        found: dict[str, list[Term]] = {}
        for term in self.terms:
            found.setdefault(term.task, []).append(term)
        return found

    def clusters(self, task: str) -> Mapping[Any, str]:
        """Return by item of a task its cluster; see `RunScores.clusters`."""
        return self.evaluations.clusters(task, self.tasks[task][0].stage)

    def items(self, task: str) -> pd.Series | None:
        """Return the weighted sum of a task's cells by item; None where answers were not kept."""
        cells = [(term.weight, self.evaluations.items(task, term.stage)) for term in self.tasks[task]]
        known = [weight * scores for weight, scores in cells if scores is not None]
        if len(known) < len(cells):
            return None
        first, *further = known
        for scores in further:
            if set(scores.index) != set(first.index):
                raise RunError(
                    f"{task}: {self.evaluations.run.path} has different items after different stages; evaluate all stages "
                    "on the same items"
                )
            first = first + scores
        return first.reindex(known[0].index)
