"""Continual-learning figures, each defined once: as terms of the score matrix, see `harness.stats.score_matrix`.

A figure's value, its paired differences, the intervals over seeds and over items, comparisons, the metrics of claims and CSV
columns all follow from its terms. To add a figure, register one here and give it a golden value in the tests
(docs/add-a-metric.md).

A figure is nan where it is not defined (backward transfer needs T >= 2, probe change needs a probe) and where a cell that it
needs has not been evaluated. Reports print the formulas below.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

from harness.errors import ConfigError
from harness.stats.figure_terms import (
    after_own,
    at_end,
    at_start,
    before_own,
    best_from,
    earlier_tasks,
    if_earlier,
    incremental,
    kept,
    kept_change,
    later_tasks,
    learned_tasks,
    minus,
    probes,
    tasks_to_keep,
    tasks_with_joint,
    trained_tasks,
)
from harness.stats.score_matrix import Compared, Figure, ScoreMatrix, Term, Unit

FIGURES: dict[str, Figure] = {}


def register_figure(figure: Figure) -> Figure:
    """Add a figure to those that reports, comparisons and claims know.

    Raises ConfigError for a name that is taken, and for a field that a reader of figures could not use.
    """
    if figure.name in FIGURES:
        raise ConfigError(f"there is already a figure {figure.name!r}; give the new one a different name")
    if not figure.name.isidentifier():
        raise ConfigError(f"figure {figure.name!r}: found no name that a claim can use; expected letters, digits and _")
    for field, allowed in (("unit", get_args(Unit)), ("compared", get_args(Compared))):
        if (found := getattr(figure, field)) not in allowed:
            raise ConfigError(
                f"figure {figure.name}: {field} is {found!r}, expected one of {', '.join(map(repr, allowed))}"
            )
    if figure.compared and not figure.short:
        raise ConfigError(
            f"figure {figure.name}: compared is {figure.compared!r} and short is empty; name its rows by short"
        )
    if figure.of_task in {*FIGURES, *(each.of_task for each in FIGURES.values() if each.of_task)}:
        raise ConfigError(f"figure {figure.name}: of_task {figure.of_task!r} is taken; choose a different one")
    FIGURES[figure.name] = figure
    return figure


def compute_figures(matrix: ScoreMatrix) -> dict[str, float]:
    """Return every registered figure of one run, by name, in the order in which reports show them."""
    return {name: figure.value(matrix) for name, figure in FIGURES.items()}


_OWN = ", over tasks the method trains itself"
_GEM = "Lopez-Paz and Ranzato 2017, arXiv 1706.08840"
_ICARL = "Rebuffi et al. 2017, arXiv 1611.07725"
_RWALK = "Chaudhry et al. 2018, arXiv 1801.10112"

ACCURACY = register_figure(
    Figure(
        "average_accuracy",
        "Average accuracy (ACC)",
        "1/J Σ_j R[T][j]",
        _GEM,
        "%",
        True,
        at_end,
        trained_tasks,
        short="final score",
        of_task="final",
        compared="tasks",
    )
)
LEARNING = register_figure(
    Figure(
        "learning_accuracy",
        "Learning accuracy",
        f"1/J Σ_j R[j][j]{_OWN}",
        "Riemer et al. 2019, arXiv 1810.11910",
        "%",
        True,
        after_own,
        learned_tasks,
        short="learned",
        of_task="learned",
        compared="tasks",
    )
)
START = register_figure(
    Figure(
        "start_accuracy",
        "Accuracy at the start",
        "1/J Σ_j R[0][j]",
        "the trained tasks before any training; this harness",
        "%",
        True,
        at_start,
        trained_tasks,
        short="start",
        of_task="before",
    )
)
register_figure(
    Figure(
        "plasticity",
        "Plasticity",
        f"1/J Σ_j (R[j][j] − R[j−1][j]){_OWN}",
        "gain over a task's own stage, negative where a stage harms its own task; this harness",
        "points",
        True,
        minus(after_own, before_own),
        learned_tasks,
        short="gained",
        of_task="gained",
    )
)
BACKWARD = register_figure(
    Figure(
        "backward_transfer",
        "Backward transfer (BWT)",
        "mean_{j<T} (R[T][j] − R[j][j])",
        f"{_GEM}; TRACE divides by t, CoIN by T",
        "points",
        True,
        if_earlier(minus(at_end, after_own)),
        earlier_tasks,
        short="BWT",
        of_task="retained",
        compared="average",
        needs_matched_learning=True,
    )
)
FORGETTING = register_figure(
    Figure(
        "forgetting_chaudhry",
        "Forgetting (Chaudhry)",
        "mean_{j<T} (max_{1≤l<T} R[l][j] − R[T][j])",
        f"{_RWALK}, equation 3",
        "points",
        False,
        if_earlier(minus(best_from(1), at_end)),
        earlier_tasks,
        short="forgotten",
        of_task="forgotten",
        compared="average",
        needs_matched_learning=True,
    )
)
register_figure(
    Figure(
        "forgetting_from_start",
        "Forgetting from the start",
        "mean_{j<T} (max_{0≤l<T} R[l][j] − R[T][j])",
        "Chaudhry's, with the maximum taken from stage 0: it includes what a task loses in the first stage",
        "points",
        False,
        minus(best_from(0), at_end),
        earlier_tasks,
        short="forgotten, from start",
    )
)
# Avalanche's definition, first minus last: the negative of backward transfer.
register_figure(
    replace(
        BACKWARD,
        name="forgetting_avalanche",
        label="Forgetting (Avalanche)",
        formula="mean_{j<T} (R[j][j] − R[T][j])",
        source="Lomonaco et al. 2021, arXiv 2104.00405; equals −BWT",
        higher_is_better=False,
        cells=if_earlier(minus(after_own, at_end)),
        short="forgotten, Avalanche",
        of_task="",
        compared="",
    )
)
register_figure(
    Figure(
        "retention_ratio",
        "Retention ratio",
        "mean over j<T with R[j][j] > 0 of R[T][j] / R[j][j]",
        "share of what was learned that is left; this harness",
        "ratio",
        True,
        kept_change,
        tasks_to_keep,
        kept,
        short="kept",
    )
)
register_figure(
    Figure(
        "average_incremental_accuracy",
        "Average incremental accuracy (AIA)",
        "1/T Σ_i mean_{j≤i} R[i][j]",
        _ICARL,
        "%",
        True,
        incremental,
        trained_tasks,
        short="AIA",
    )
)
register_figure(
    Figure(
        "forward_transfer",
        "Forward transfer (FWT)",
        "mean_{j≥2} (R[j−1][j] − R[0][j])",
        f"{_GEM}; baseline: the run's own start",
        "points",
        True,
        minus(before_own, at_start),
        later_tasks,
        short="FWT",
    )
)
INTRANSIGENCE = register_figure(
    Figure(
        "intransigence",
        "Intransigence",
        "1/J Σ_j (R*[j] − R[j][j]), R* from a joint run",
        _RWALK,
        "points",
        False,
        lambda matrix, task: [Term(task, stage, -1.0) for _, stage, _ in after_own(matrix, task)],
        tasks_with_joint,
        lambda matrix, task: math.nan if matrix.joint is None else float(matrix.joint[matrix.trained.index(task)]),
        short="intransigence",
    )
)
PROBE_CHANGE = register_figure(
    Figure(
        "probe_change",
        "Probe change",
        "mean_p (R[T][p] − R[0][p])",
        "tasks that are never trained; this harness",
        "points",
        True,
        minus(at_end, at_start),
        probes,
        short="probes",
        of_task="changed",
    )
)
register_figure(
    Figure(
        "probe_forgetting",
        "Probe forgetting",
        "mean_p (max_{0≤l<T} R[l][p] − R[T][p])",
        "Chaudhry's, with the maximum taken from stage 0",
        "points",
        False,
        minus(best_from(0), at_end),
        probes,
        short="probes forgotten",
    )
)
