"""The parts of figures: functions that return the cells to add up for one task, or the tasks to average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.stats.score_matrix import Cells, ScoreMatrix, Term

# The cells of one task.


def at_start(_matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return the cell before any training."""
    return [Term(task, 0)]


def at_end(matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return the cell after the last stage."""
    return [Term(task, matrix.stages)]


def after_own(matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return the cell right after the stage that trains the task; none for a probe."""
    own = matrix.own(task)
    return [Term(task, own)] if own else []


def before_own(matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return the cell right before the stage that trains the task; none for a probe."""
    own = matrix.own(task)
    return [Term(task, own - 1)] if own else []


def best_from(first: int) -> Cells:
    """Return the cell of a task's best stage from `first` to T-1; a nan among these scores makes that cell nan."""

    def best(matrix: ScoreMatrix, task: str) -> list[Term]:
        scores = [matrix.score(task, stage) for stage in range(first, matrix.stages)]
        return [Term(task, first + int(np.argmax(scores)))] if scores else []

    return best


def minus(later: Cells, earlier: Cells) -> Cells:
    """Return the terms of later minus earlier; none if either has none."""

    def change(matrix: ScoreMatrix, task: str) -> list[Term]:
        plus, minus = later(matrix, task), earlier(matrix, task)
        return [*plus, *(Term(each.task, each.stage, -each.weight) for each in minus)] if plus and minus else []

    return change


def if_earlier(cells: Cells) -> Cells:
    """Return the cells of tasks that are trained before the last stage; none for other tasks."""
    return lambda matrix, task: cells(matrix, task) if 0 < (matrix.own(task) or 0) < matrix.stages else []


def kept(matrix: ScoreMatrix, task: str) -> float:
    """Return `R[T][j] / R[j][j]`; nan for a task that is not trained before the last stage, or scored 0 after its own."""
    own = matrix.own(task) or 0
    learned = matrix.score(task, own) if 0 < own < matrix.stages else 0.0
    return matrix.score(task, matrix.stages) / learned if learned else math.nan


def kept_change(matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return the first-order change of `kept` with its two cells, d(b/a) = db / a - (b/a) da / a.

    At the scores themselves these terms add up to 0, so `kept` is the figure's offset and the values by seed are exact. What
    each item contributes follows from the terms (the delta method).
    """
    own, share = matrix.own(task) or 0, kept(matrix, task)
    if math.isnan(share):
        return []
    learned = matrix.score(task, own)
    return [Term(task, matrix.stages, 1 / learned), Term(task, own, -share / learned)]


def incremental(matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return J times a task's part of `1/T Σ_i mean_{j≤i} R[i][j]`, as the figure divides by J again."""
    own, every = matrix.own(task), len(matrix.trained)
    so_far = {stage: sum(each <= stage for each in matrix.stage_of) for stage in range(own or 1, matrix.stages + 1)}
    return [Term(task, stage, every / matrix.stages / count) for stage, count in so_far.items()] if own else []


# The tasks that a figure averages.


def trained_tasks(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the tasks that any stage trains."""
    return matrix.trained


def learned_tasks(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the tasks that the method under test trains: all trained ones but those of stages with their own adapter."""
    return [task for task in matrix.trained if task not in matrix.fixed]


def earlier_tasks(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the tasks that a stage before the last one trains."""
    return [task for task in matrix.trained if (matrix.own(task) or 0) < matrix.stages]


def later_tasks(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the tasks that a stage after the first one trains."""
    return [task for task in matrix.trained if (matrix.own(task) or 0) > 1]


def tasks_to_keep(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the earlier tasks that did not score 0 after their own stage; a missing score is kept, so the mean is nan."""
    return [task for task in earlier_tasks(matrix) if matrix.score(task, matrix.own(task) or 0) != 0]


def tasks_with_joint(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the trained tasks if the scores of a joint run are known, else none."""
    return matrix.trained if matrix.joint is not None else ()


def probes(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the tasks that no stage trains, of the run or before its start."""
    return [task for task in matrix.probes if task not in matrix.before]
