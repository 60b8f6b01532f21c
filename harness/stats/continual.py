"""Continual-learning figures, each defined once: as terms of the score matrix.

`R[i][j]` is the score on task j after stage i; row 0 is the start, stage j trains task j, T is the number of stages.
A stage may train several tasks at once, so that J tasks have T <= J stages; `R[j][j]` is then the score right after the
stage that trained task j, and j < T means the tasks of the earlier stages. With one task a stage, J = T and the mean over
j < T is the papers' 1/(T-1) sum.

A `Figure` says which cells of one task it adds up, with which weights, and over which tasks it averages. Its value, its
paired differences, the intervals over seeds and over items, comparisons, the metrics of claims and CSV columns all follow
from these terms. To add a figure, register one here and give it a golden value in the tests.

A figure is nan where it has no meaning (backward transfer needs T >= 2, probe change needs a probe) and where a cell that it
needs has not been evaluated. The formulas next to the figures are the ones that reports print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """Scores (T+1, J+P) of one run; columns are its J trained tasks in stage order, then the P probes.

    A cell that was not evaluated is nan. `stage_of` (J,) is the stage that trains each task, 1 to T; left out, stage j
    trains task j. `joint` (J,) holds the trained tasks' scores of a run that trained them all together; only
    intransigence needs it. Raises ConfigError when the shapes do not fit the names.
    """

    scores: Vector
    trained: tuple[str, ...]
    probes: tuple[str, ...] = ()
    stage_of: tuple[int, ...] = ()
    joint: Vector | None = None

    def __post_init__(self) -> None:
        if not self.stage_of:
            object.__setattr__(self, "stage_of", tuple(range(1, len(self.trained) + 1)))
        expected = (max(self.stage_of, default=0) + 1, len(self.tasks))
        fits = self.scores.ndim == 2 and self.scores.shape[0] >= expected[0] and self.scores.shape[1] == expected[1]
        if not fits or not self.tasks or len(self.stage_of) != len(self.trained):
            raise ConfigError(
                f"A score matrix of shape {self.scores.shape} does not fit {len(self.trained)} trained tasks and "
                f"{len(self.probes)} probes; expected at least one task, and a row for the start and for each stage: "
                f"shape {expected} or more rows."
            )
        if self.joint is not None and self.joint.shape != (len(self.trained),):
            raise ConfigError(f"Joint scores have shape {self.joint.shape}; expected one per trained task.")

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
        )


class Term(NamedTuple):
    """One cell of the score matrix with its weight: `weight * R[stage][task]`."""

    task: str
    stage: int
    weight: float = 1.0


Cells = Callable[[ScoreMatrix, str], Sequence[Term]]
Over = Callable[[ScoreMatrix], Sequence[str]]


def _nothing(_matrix: ScoreMatrix, _task: str) -> float:
    return 0.0


@dataclass(frozen=True)
class Figure:
    """One named figure: how it is written, where it is defined, and its terms.

    - `cells` are the terms of one task; none where the figure has no meaning for the task.
    - `over` are the tasks that the figure averages.
    - `offset` is what a task adds that is not a sum of this run's cells: see `retention_ratio` and `intransigence`.
    - `short` is the name in narrow columns; `of_task` names the same quantity of a single task, where claims may use it.
    - `compared` says where a comparison of methods shows the figure: of every task and over all, over all, or nowhere.
    - `needs_matched_learning`: a difference speaks of the method only where both methods learned equally.
    """

    name: str
    label: str
    formula: str
    source: str
    unit: Literal["%", "points", "ratio"]
    higher_is_better: bool
    cells: Cells
    over: Over
    offset: Callable[[ScoreMatrix, str], float] = _nothing
    short: str = ""
    of_task: str = ""
    compared: Literal["", "average", "tasks"] = ""
    needs_matched_learning: bool = False

    def terms(self, matrix: ScoreMatrix, task: str = "") -> list[Term]:
        """Return the weighted cells of the mean over the figure's tasks, or of one task; none where it has no meaning."""
        tasks = [task] if task else self.over(matrix)
        return [
            Term(term.task, term.stage, term.weight / len(tasks)) for each in tasks for term in self.cells(matrix, each)
        ]

    def offsets(self, matrix: ScoreMatrix, task: str = "") -> float:
        """Return the part of the value that is not in the terms."""
        tasks = [task] if task else self.over(matrix)
        return sum(self.offset(matrix, each) for each in tasks) / len(tasks) if tasks else 0.0

    def value(self, matrix: ScoreMatrix, task: str = "") -> float:
        """Return the figure of a run, or of one of its tasks; nan where it has no meaning or a cell is missing."""
        terms = self.terms(matrix, task)
        if not terms:
            return math.nan
        return sum(term.weight * matrix.score(term.task, term.stage) for term in terms) + self.offsets(matrix, task)


FIGURES: dict[str, Figure] = {}


def register(figure: Figure) -> Figure:
    """Add a figure to those that reports, comparisons and claims know; raises ConfigError for a name that is taken."""
    if figure.name in FIGURES:
        raise ConfigError(f"there is already a figure {figure.name!r}; give the new one a different name")
    FIGURES[figure.name] = figure
    return figure


def compute_figures(matrix: ScoreMatrix) -> dict[str, float]:
    """Return every registered figure of one run, by name, in the order in which reports show them."""
    return {name: figure.value(matrix) for name, figure in FIGURES.items()}


# The cells of one task.


def _at_start(_matrix: ScoreMatrix, task: str) -> list[Term]:
    return [Term(task, 0)]


def _at_end(matrix: ScoreMatrix, task: str) -> list[Term]:
    return [Term(task, matrix.stages)]


def _after_own(matrix: ScoreMatrix, task: str) -> list[Term]:
    own = matrix.own(task)
    return [Term(task, own)] if own else []


def _before_own(matrix: ScoreMatrix, task: str) -> list[Term]:
    own = matrix.own(task)
    return [Term(task, own - 1)] if own else []


def _best_from(first: int) -> Cells:
    """Return the cell of a task's best stage from `first` to T-1; a nan among these cells makes the best one nan."""

    def best(matrix: ScoreMatrix, task: str) -> list[Term]:
        scores = [matrix.score(task, stage) for stage in range(first, matrix.stages)]
        return [Term(task, first + int(np.argmax(scores)))] if scores else []

    return best


def _minus(later: Cells, earlier: Cells) -> Cells:
    """Return the change between two cells; none where either has no meaning."""

    def change(matrix: ScoreMatrix, task: str) -> list[Term]:
        plus, minus = later(matrix, task), earlier(matrix, task)
        return [*plus, *(Term(each.task, each.stage, -each.weight) for each in minus)] if plus and minus else []

    return change


def _if_earlier(cells: Cells) -> Cells:
    """Return the cells of tasks that a later stage can take from; none of the others."""
    return lambda matrix, task: cells(matrix, task) if 0 < (matrix.own(task) or 0) < matrix.stages else []


def _kept(matrix: ScoreMatrix, task: str) -> float:
    """Return `R[T][j] / R[j][j]`; nan for a task that has no earlier stage or scored 0 after it."""
    own = matrix.own(task) or 0
    learned = matrix.score(task, own) if 0 < own < matrix.stages else 0.0
    return matrix.score(task, matrix.stages) / learned if learned else math.nan


def _kept_cells(matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return the first-order change of the ratio with its two cells; these terms add up to 0 where they are taken.

    d(b/a) = db / a - (b/a) da / a: so the ratio itself is the offset, and seeds' values are exact. Items and their intervals
    follow from the terms (the delta method).
    """
    own, kept = matrix.own(task) or 0, _kept(matrix, task)
    if math.isnan(kept):
        return []
    learned = matrix.score(task, own)
    return [Term(task, matrix.stages, 1 / learned), Term(task, own, -kept / learned)]


def _incremental(matrix: ScoreMatrix, task: str) -> list[Term]:
    """Return a task's share of the mean over stages of the mean over the tasks trained so far, times J."""
    own, every = matrix.own(task), len(matrix.trained)
    so_far = {stage: sum(each <= stage for each in matrix.stage_of) for stage in range(own or 1, matrix.stages + 1)}
    return [Term(task, stage, every / matrix.stages / count) for stage, count in so_far.items()] if own else []


# The tasks that a figure averages.


def _trained(matrix: ScoreMatrix) -> Sequence[str]:
    return matrix.trained


def _earlier(matrix: ScoreMatrix) -> Sequence[str]:
    return [task for task in matrix.trained if (matrix.own(task) or 0) < matrix.stages]


def _later(matrix: ScoreMatrix) -> Sequence[str]:
    return [task for task in matrix.trained if (matrix.own(task) or 0) > 1]


def _something_to_keep(matrix: ScoreMatrix) -> Sequence[str]:
    """Return the earlier tasks that did not score 0 after their own stage; one that is missing counts, so the mean is nan."""
    return [task for task in _earlier(matrix) if matrix.score(task, matrix.own(task) or 0) != 0]


def _with_joint(matrix: ScoreMatrix) -> Sequence[str]:
    return matrix.trained if matrix.joint is not None else ()


def _probes(matrix: ScoreMatrix) -> Sequence[str]:
    return matrix.probes


_GEM = "Lopez-Paz and Ranzato 2017, arXiv 1706.08840"
_ICARL = "Rebuffi et al. 2017, arXiv 1611.07725"
_RWALK = "Chaudhry et al. 2018, arXiv 1801.10112"

ACCURACY = register(
    Figure(
        "average_accuracy",
        "Average accuracy (ACC)",
        "1/J Σ_j R[T][j]",
        _GEM,
        "%",
        True,
        _at_end,
        _trained,
        short="final score",
        of_task="final",
        compared="tasks",
    )
)
LEARNING = register(
    Figure(
        "learning_accuracy",
        "Learning accuracy",
        "1/J Σ_j R[j][j]",
        "Riemer et al. 2019, arXiv 1810.11910",
        "%",
        True,
        _after_own,
        _trained,
        short="learned",
        of_task="learned",
        compared="tasks",
    )
)
START = register(
    Figure(
        "start_accuracy",
        "Accuracy at the start",
        "1/J Σ_j R[0][j]",
        "the trained tasks before any training; this harness",
        "%",
        True,
        _at_start,
        _trained,
        short="start",
        of_task="before",
    )
)
PLASTICITY = register(
    Figure(
        "plasticity",
        "Plasticity",
        "1/J Σ_j (R[j][j] − R[j−1][j])",
        "gain over a task's own stage, negative where a stage harms its own task; this harness",
        "points",
        True,
        _minus(_after_own, _before_own),
        _trained,
        short="gained",
        of_task="gained",
    )
)
BACKWARD = register(
    Figure(
        "backward_transfer",
        "Backward transfer (BWT)",
        "mean_{j<T} (R[T][j] − R[j][j])",
        f"{_GEM}; TRACE divides by t, CoIN by T",
        "points",
        True,
        _if_earlier(_minus(_at_end, _after_own)),
        _earlier,
        short="BWT",
        of_task="retained",
        compared="average",
        needs_matched_learning=True,
    )
)
FORGETTING = register(
    Figure(
        "forgetting_chaudhry",
        "Forgetting (Chaudhry)",
        "mean_{j<T} (max_{1≤l<T} R[l][j] − R[T][j])",
        f"{_RWALK}, equation 3",
        "points",
        False,
        _if_earlier(_minus(_best_from(1), _at_end)),
        _earlier,
        short="forgotten",
        of_task="forgotten",
        compared="average",
        needs_matched_learning=True,
    )
)
FORGETTING_FROM_START = register(
    Figure(
        "forgetting_from_start",
        "Forgetting from the start",
        "mean_{j<T} (max_{0≤l<T} R[l][j] − R[T][j])",
        "Chaudhry's, with the maximum taken from stage 0: it includes what a task loses in the first stage",
        "points",
        False,
        _minus(_best_from(0), _at_end),
        _earlier,
        short="forgotten, from start",
    )
)
# First minus last, as Avalanche has it: minus the backward transfer.
register(
    replace(
        BACKWARD,
        name="forgetting_avalanche",
        label="Forgetting (Avalanche)",
        formula="mean_{j<T} (R[j][j] − R[T][j])",
        source="Lomonaco et al. 2021, arXiv 2104.00405; equals −BWT",
        higher_is_better=False,
        cells=_if_earlier(_minus(_after_own, _at_end)),
        short="forgotten, Avalanche",
        of_task="",
        compared="",
    )
)
RETENTION_RATIO = register(
    Figure(
        "retention_ratio",
        "Retention ratio",
        "mean over j<T with R[j][j] > 0 of R[T][j] / R[j][j]",
        "share of what was learned that is left; this harness",
        "ratio",
        True,
        _kept_cells,
        _something_to_keep,
        _kept,
        short="kept",
    )
)
INCREMENTAL = register(
    Figure(
        "average_incremental_accuracy",
        "Average incremental accuracy (AIA)",
        "1/T Σ_i mean_{j≤i} R[i][j]",
        _ICARL,
        "%",
        True,
        _incremental,
        _trained,
        short="AIA",
    )
)
FORWARD = register(
    Figure(
        "forward_transfer",
        "Forward transfer (FWT)",
        "mean_{j≥2} (R[j−1][j] − R[0][j])",
        f"{_GEM}; baseline: the run's own start",
        "points",
        True,
        _minus(_before_own, _at_start),
        _later,
        short="FWT",
    )
)
INTRANSIGENCE = register(
    Figure(
        "intransigence",
        "Intransigence",
        "1/J Σ_j (R*[j] − R[j][j]), R* from a joint run",
        _RWALK,
        "points",
        False,
        lambda matrix, task: [Term(task, stage, -1.0) for _, stage, _ in _after_own(matrix, task)],
        _with_joint,
        lambda matrix, task: math.nan if matrix.joint is None else float(matrix.joint[matrix.trained.index(task)]),
        short="intransigence",
    )
)
PROBE_CHANGE = register(
    Figure(
        "probe_change",
        "Probe change",
        "mean_p (R[T][p] − R[0][p])",
        "tasks that are never trained; this harness",
        "points",
        True,
        _minus(_at_end, _at_start),
        _probes,
        short="probes",
        of_task="changed",
    )
)
PROBE_FORGETTING = register(
    Figure(
        "probe_forgetting",
        "Probe forgetting",
        "mean_p (max_{0≤l<T} R[l][p] − R[T][p])",
        "Chaudhry's, with the maximum taken from stage 0",
        "points",
        False,
        _minus(_best_from(0), _at_end),
        _probes,
        short="probes forgotten",
    )
)
