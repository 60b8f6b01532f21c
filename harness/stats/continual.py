"""Continual-learning figures: pure functions from a score matrix to named, cited numbers.

`R[i][j]` is the score on task j after stage i; row 0 is the start, stage j trains task j, T is the number of stages.
A stage may train several tasks at once, so that J tasks have T <= J stages; `R[j][j]` is then the score right after the
stage that trained task j, and j < T means the tasks of the earlier stages. With one task a stage, J = T and the mean over
j < T is the papers' 1/(T-1) sum.
Every function takes a `ScoreMatrix` and returns one number. It is nan where the figure has no meaning (backward
transfer needs T >= 2, probe change needs a probe) and where a cell that it needs has not been evaluated yet. The
formulas beside the functions are the ones that reports print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
            object.__setattr__(self, "stage_of", tuple(range(1, self.tasks + 1)))
        expected = (self.stages + 1, self.tasks + len(self.probes))
        if not self.trained or len(self.stage_of) != self.tasks or self.scores.shape != expected:
            raise ConfigError(
                f"A score matrix of shape {self.scores.shape} does not fit {self.tasks} trained tasks, "
                f"{len(self.probes)} probes and {self.stages} stages; expected at least one trained task and shape "
                f"{expected}."
            )
        if self.joint is not None and self.joint.shape != (self.tasks,):
            raise ConfigError(f"Joint scores have shape {self.joint.shape}; expected one per trained task.")

    @property
    def tasks(self) -> int:
        """J, the number of trained tasks; equal to T where each stage trains one."""
        return len(self.trained)

    @property
    def stages(self) -> int:
        """T, the number of stages."""
        return max(self.stage_of, default=0)

    @property
    def learned(self) -> Vector:
        """`R[j][j]` (J,): each trained task right after its own stage."""
        return self.scores[list(self.stage_of), range(self.tasks)]

    @property
    def unlearned(self) -> Vector:
        """`R[j-1][j]` (J,): each trained task right before its own stage."""
        return self.scores[[stage - 1 for stage in self.stage_of], range(self.tasks)]

    @property
    def earlier(self) -> NDArray[np.bool_]:
        """Which trained tasks (J,) have a stage before the last, so that a later stage can take from them."""
        return np.array(self.stage_of) < self.stages

    @property
    def final(self) -> Vector:
        """`R[T]` (J+P,): every task after the last stage."""
        return self.scores[-1]


@dataclass(frozen=True)
class Figure:
    """One named figure: how it is written, where it is defined, and how it is computed."""

    name: str
    label: str
    formula: str
    source: str
    unit: Literal["%", "points", "ratio"]
    higher_is_better: bool
    compute: Callable[[ScoreMatrix], float]


FIGURES: dict[str, Figure] = {}


def compute_figures(matrix: ScoreMatrix) -> dict[str, float]:
    """Return every registered figure of one run, by name, in the order in which reports show them."""
    return {name: figure.compute(matrix) for name, figure in FIGURES.items()}


def _figure(
    label: str, formula: str, source: str, unit: Literal["%", "points", "ratio"] = "points", higher: bool = True
) -> Callable[[Callable[[ScoreMatrix], float]], Callable[[ScoreMatrix], float]]:
    """Register the decorated function as a figure under its own name."""

    def register(compute: Callable[[ScoreMatrix], float]) -> Callable[[ScoreMatrix], float]:
        name = compute.__name__
        FIGURES[name] = Figure(name, label, formula, source, unit, higher, compute)
        return compute

    return register


_GEM = "Lopez-Paz and Ranzato 2017, arXiv 1706.08840"
_ICARL = "Rebuffi et al. 2017, arXiv 1611.07725"
_RWALK = "Chaudhry et al. 2018, arXiv 1801.10112"


@_figure("Average accuracy (ACC)", "1/J Σ_j R[T][j]", _GEM, "%")
def average_accuracy(matrix: ScoreMatrix) -> float:
    """Return the mean final score of the trained tasks."""
    return _mean(matrix.final[: matrix.tasks])


@_figure("Learning accuracy", "1/J Σ_j R[j][j]", "Riemer et al. 2019, arXiv 1810.11910", "%")
def learning_accuracy(matrix: ScoreMatrix) -> float:
    """Return the mean score of each trained task right after its own stage."""
    return _mean(matrix.learned)


@_figure("Plasticity", "1/J Σ_j (R[j][j] − R[j−1][j])", "gain over a task's own stage; this harness")
def plasticity(matrix: ScoreMatrix) -> float:
    """Return the mean change of each trained task over its own stage; negative where a stage harms its own task."""
    return _mean(matrix.learned - matrix.unlearned)


@_figure("Backward transfer (BWT)", "mean_{j<T} (R[T][j] − R[j][j])", f"{_GEM}; TRACE divides by t, CoIN by T")
def backward_transfer(matrix: ScoreMatrix) -> float:
    """Return the mean change of the earlier tasks since their own stage; nan when T = 1, as nothing is earlier."""
    return _mean((matrix.final[: matrix.tasks] - matrix.learned)[matrix.earlier])


@_figure("Forgetting (Chaudhry)", "mean_{j<T} (max_{j≤l<T} R[l][j] − R[T][j])", _RWALK, higher=False)
def forgetting_chaudhry(matrix: ScoreMatrix) -> float:
    """Return the mean drop of the earlier tasks from their best since their own stage; nan when T = 1."""
    T, earlier = matrix.stages, [(j, own) for j, own in enumerate(matrix.stage_of) if own < matrix.stages]
    return _mean(np.array([matrix.scores[own:T, j].max() - matrix.final[j] for j, own in earlier]))


@_figure(
    "Forgetting from the start",
    "mean_{j<T} (max_{0≤l<T} R[l][j] − R[T][j])",
    "Chaudhry's, with the maximum taken from stage 0",
    higher=False,
)
def forgetting_from_start(matrix: ScoreMatrix) -> float:
    """Return Chaudhry's forgetting with stage 0 in the maximum; nan when T = 1.

    It also shows what a task loses before or during its own stage, which the other variants leave out.
    """
    return _mean(drop_from_start(matrix)[: matrix.tasks][matrix.earlier])


@_figure(
    "Forgetting (Avalanche)",
    "mean_{j<T} (R[j][j] − R[T][j])",
    "Lomonaco et al. 2021, arXiv 2104.00405; equals −BWT",
    higher=False,
)
def forgetting_avalanche(matrix: ScoreMatrix) -> float:
    """Return the mean drop of the earlier tasks since their own stage, first minus last; nan when T = 1."""
    return _mean((matrix.learned - matrix.final[: matrix.tasks])[matrix.earlier])


@_figure(
    "Retention ratio",
    "mean over j<T with R[j][j] > 0 of R[T][j] / R[j][j]",
    "share of what was learned that is left; this harness",
    "ratio",
)
def retention_ratio(matrix: ScoreMatrix) -> float:
    """Return the mean share of the learned score that the earlier tasks keep.

    Tasks that scored 0 after their own stage had nothing to keep and are left out; nan when none is left or T = 1.
    """
    learned, final = matrix.learned[matrix.earlier], matrix.final[: matrix.tasks][matrix.earlier]
    nothing = learned == 0
    return _mean(final[~nothing] / learned[~nothing])


@_figure("Average incremental accuracy (AIA)", "1/T Σ_i mean_{j≤i} R[i][j]", _ICARL, "%")
def average_incremental_accuracy(matrix: ScoreMatrix) -> float:
    """Return the mean over stages of the mean score of the tasks trained so far."""
    own = np.array(matrix.stage_of)
    so_far = [_mean(matrix.scores[i, : matrix.tasks][own <= i]) for i in range(1, matrix.stages + 1)]
    return _mean(np.array(so_far))


@_figure("Forward transfer (FWT)", "mean_{j≥2} (R[j−1][j] − R[0][j])", f"{_GEM}; baseline: the run's own start")
def forward_transfer(matrix: ScoreMatrix) -> float:
    """Return how much the later tasks gained before their own stage; nan when T = 1, as nothing is later."""
    later = np.array(matrix.stage_of) > 1
    return _mean((matrix.unlearned - matrix.scores[0, : matrix.tasks])[later])


@_figure("Intransigence", "1/J Σ_j (R*[j] − R[j][j]), R* from a joint run", _RWALK, higher=False)
def intransigence(matrix: ScoreMatrix) -> float:
    """Return how far learning stayed behind a joint run over all tasks; nan without joint scores."""
    return float("nan") if matrix.joint is None else _mean(matrix.joint - matrix.learned)


@_figure("Probe change", "mean_p (R[T][p] − R[0][p])", "tasks that are never trained; this harness")
def probe_change(matrix: ScoreMatrix) -> float:
    """Return the mean change of the probes over the whole run; nan without probes."""
    return _mean(np.array(list(probe_changes(matrix).values())))


@_figure(
    "Probe forgetting",
    "mean_p (max_{0≤l<T} R[l][p] − R[T][p])",
    "Chaudhry's, with the maximum taken from stage 0",
    higher=False,
)
def probe_forgetting(matrix: ScoreMatrix) -> float:
    """Return the mean drop of the probes from their best since the start; nan without probes."""
    return _mean(drop_from_start(matrix)[matrix.tasks :])


def probe_changes(matrix: ScoreMatrix) -> dict[str, float]:
    """Return `R[T][p] - R[0][p]` of each probe, by name."""
    change = (matrix.final - matrix.scores[0])[matrix.tasks :]
    return dict(zip(matrix.probes, change.tolist(), strict=True))


def drop_from_start(matrix: ScoreMatrix) -> Vector:
    """Return `max_{0<=l<T} R[l][j] - R[T][j]` (J+P,) of every task, probes included; negative where the end is best."""
    return matrix.scores[:-1].max(axis=0) - matrix.final


def _mean(values: Vector) -> float:
    """Mean without numpy's warning: nan where nothing is averaged."""
    return float(values.mean()) if values.size else float("nan")
