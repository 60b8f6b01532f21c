"""The score matrix of one run, and a figure as a weighted sum of its cells.

`R[i][j]` is the score on task j after stage i; row 0 is the start, stage j trains task j, T is the number of stages.
A stage may train several tasks at once, so that J tasks have T <= J stages; `R[j][j]` is then the score right after the
stage that trained task j, and j < T means the tasks of all stages but the last. With one task per stage, J = T and the mean
over j < T is the papers' 1/(T-1) sum.

A `Figure` adds up some cells of each task with weights, and averages over some tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from harness.errors import ConfigError
from harness.stats.intervals import Vector


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """Scores (T+1, J+P) of one run; columns are its J trained tasks in stage order, then the P probes.

    A cell that was not evaluated is nan. `stage_of` (J,) is the stage that trains each task, 1 to T; by default stage j
    trains task j. `joint` (J,) are the trained tasks' scores in a run that trained them all together; only intransigence
    needs them. `fixed` are the trained tasks whose stage has an adapter of its own: all methods learn them alike. `before` are
    the tasks that were trained before the start; such a task may be among the probes, and no figure counts it as one. Raises
    `ConfigError` when the shapes do not fit the names.
    """

    scores: Vector
    trained: tuple[str, ...]
    probes: tuple[str, ...] = ()
    stage_of: tuple[int, ...] = ()
    joint: Vector | None = None
    fixed: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.stage_of:
            object.__setattr__(self, "stage_of", tuple(range(1, len(self.trained) + 1)))
        expected = (max(self.stage_of, default=0) + 1, len(self.tasks))
        fits = self.scores.ndim == 2 and self.scores.shape[0] >= expected[0] and self.scores.shape[1] == expected[1]
        if not fits or not self.tasks or len(self.stage_of) != len(self.trained):
            raise ConfigError(
                f"a score matrix of shape {self.scores.shape} does not fit {len(self.trained)} trained tasks and "
                f"{len(self.probes)} probes; expected at least one task, and a row for the start and for each stage: "
                f"shape {expected} or more rows"
            )
        if self.joint is not None and self.joint.shape != (len(self.trained),):
            raise ConfigError(
                f"the scores of the joint run have shape {self.joint.shape}, expected {(len(self.trained),)}: one for each "
                "trained task"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the columns: trained tasks, then probes."""
        return (*self.trained, *self.probes)

    @property
    def stages(self) -> int:
        """T, the number of stages."""
        return self.scores.shape[0] - 1

    def own(self, task: str) -> int | None:
        """Return the stage that trains a task; None for a probe."""
        return self.stage_of[self.trained.index(task)] if task in self.trained else None

    def score(self, task: str, stage: int) -> float:
        """Return `R[stage][task]`; nan for a task that the matrix does not have."""
        return float(self.scores[stage, self.tasks.index(task)]) if task in self.tasks else math.nan

    def up_to(self, stage: int) -> ScoreMatrix:
        """Return the matrix as if `stage` were the last: tasks that are trained later are probes."""
        if stage >= self.stages:
            return self
        trained = [place for place, own in enumerate(self.stage_of) if own <= stage]
        others = [place for place in range(len(self.tasks)) if place not in trained]
        return ScoreMatrix(
            self.scores[: stage + 1, [*trained, *others]],
            tuple(self.tasks[place] for place in trained),
            tuple(self.tasks[place] for place in others),
            tuple(self.stage_of[place] for place in trained),
            None if self.joint is None else self.joint[trained],
            self.fixed,
            self.before,
        )


class Term(NamedTuple):
    """One cell of the score matrix with its weight: `weight * R[stage][task]`."""

    task: str
    stage: int
    weight: float = 1.0


Cells = Callable[[ScoreMatrix, str], Sequence[Term]]
Over = Callable[[ScoreMatrix], Sequence[str]]
Unit = Literal["%", "points", "ratio"]
Compared = Literal["", "average", "tasks"]


@dataclass(frozen=True)
class Figure:
    """One named figure: its names, formula, source and unit, and its terms.

    - `cells` returns the terms of one task; none if the figure is not defined for the task.
    - `over` returns the tasks that the figure averages.
    - `offset` returns the part of a task's value that is not a sum of this run's cells, as for `retention_ratio` and
      `intransigence`.
    - `short` is the name in narrow columns; `of_task` is the name of the same quantity of a single task in claims, if any.
    - `compared`: what a comparison of methods shows: each task and the mean (`tasks`), the mean (`average`), or nothing.
    - `needs_matched_learning`: a difference between methods is only meaningful if both learned equally.
    """

    name: str
    label: str
    formula: str
    source: str
    unit: Unit
    higher_is_better: bool
    cells: Cells
    over: Over
    offset: Callable[[ScoreMatrix, str], float] = lambda _matrix, _task: 0.0
    short: str = ""
    of_task: str = ""
    compared: Compared = ""
    needs_matched_learning: bool = False

    def terms(self, matrix: ScoreMatrix, task: str = "") -> list[Term]:
        """Return the weighted cells of the mean over the figure's tasks, or of one task; none if it is not defined."""
        tasks = [task] if task else self.over(matrix)
        return [
            Term(term.task, term.stage, term.weight / len(tasks)) for each in tasks for term in self.cells(matrix, each)
        ]

    def offsets(self, matrix: ScoreMatrix, task: str = "") -> float:
        """Return the part of the value that is not in the terms."""
        tasks = [task] if task else self.over(matrix)
        return sum(self.offset(matrix, each) for each in tasks) / len(tasks) if tasks else 0.0

    def value(self, matrix: ScoreMatrix, task: str = "") -> float:
        """Return the figure of a run, or of one of its tasks; nan if it is not defined or a cell is missing."""
        terms = self.terms(matrix, task)
        if not terms:
            return math.nan
        return sum(term.weight * matrix.score(term.task, term.stage) for term in terms) + self.offsets(matrix, task)
