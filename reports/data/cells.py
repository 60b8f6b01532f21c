"""One task after one stage of one run: the evaluated cell, and its rows in the frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from harness.rundir.files import read_results
from harness.rundir.reader import Role, RunDir, identity, read_parquet
from harness.rundir.records.cell_records import OUTCOMES, CellSummary
from harness.stats.intervals import effective_clusters

NOT_EVALUATED = {
    **{"metric": "", "score": math.nan, "n": 0, "answers": 0, **dict.fromkeys(OUTCOMES, 0)},
    **{"response_tokens_mean": math.nan, "seconds": 0.0, "weights": "", "comparability": ""},
}


@dataclass(frozen=True)
class CellRef:
    """One task after one stage of one run; `results` is None when it has not been evaluated."""

    run: RunDir
    label: str
    stage: int
    task: str
    path: Path
    results: CellSummary | None

    @property
    def answers(self) -> Path:
        """The file of its graded answers."""
        return self.path / "samples.parquet"


def cell_at(run: RunDir, label: str, stage: int, task: str, profile: str = "", grader: str = "") -> CellRef:
    """Return a task's cell after a stage, graded by `grader` where there are such grades."""
    path = run.cell_path(stage, task, profile, grader)
    return CellRef(run, label, stage, task, path, read_results(path))


def cells_of(run: RunDir, label: str, profile: str, grader: str) -> Iterator[CellRef]:
    """Yield every cell that a run is to have under a profile, stage by stage."""
    for stage in range(len(run.stages) + 1):
        for task in run.tasks_under(profile):
            yield cell_at(run, label, stage, task, profile, grader)


def place_of(cell: CellRef) -> dict[str, Any]:
    """Return the columns that say which run, stage and task a row belongs to."""
    return {**identity(cell.run, cell.label), "stage": cell.stage, "task": cell.task}


def score_row(cell: CellRef) -> dict[str, Any]:
    """Return a cell's row of scores, outcomes and keys; score nan where it has not been evaluated."""
    run, results = cell.run, cell.results
    place = {
        **place_of(cell),
        "stage_task": run.stages[cell.stage - 1] if cell.stage else "",
        "role": run.role(cell.task),
        "fixed": cell.task in run.manifest.fixed_tasks,
        "own": cell.stage > 0 and cell.task in run.trains[cell.stage - 1],
    }
    if results is None:
        return {**place, **NOT_EVALUATED}
    return {
        **place,
        "metric": results.metric,
        "score": results.score,
        "n": results.n,
        "answers": results.n * results.samples,
        **{outcome: results.outcomes.get(outcome, 0) for outcome in OUTCOMES},
        "response_tokens_mean": results.response_tokens_mean or math.nan,
        "seconds": results.seconds,
        "weights": results.weights,
        "comparability": results.keys.comparability,
    }


def role_in_all(roles: Iterable[str]) -> str:
    """Return a task's role in several runs: it is a probe only if nothing trains it in any of them, or before their start."""
    found = set(roles)
    return next(role for role in get_args(Role) if role in found)


def independent_items(cell: CellRef) -> float:
    """Return how many independent items an evaluated cell is worth, see `effective_clusters`; 0 before it is evaluated.

    Where answers were not kept, the sizes of its clusters are unknown and count as equal.
    """
    results = cell.results
    if results is None or results.clusters in (None, results.n):
        return float(results.n) if results else 0.0
    rows = read_parquet(cell.answers, ["item_id", "cluster"]) if cell.answers.is_file() else pd.DataFrame()
    if "cluster" not in rows:
        return float(results.clusters)
    return effective_clusters(rows.drop_duplicates("item_id")["cluster"].value_counts())


def outcome_rows(cell: CellRef) -> pd.DataFrame:
    """Return a cell's items with their outcome; of several answers the first that is not right counts."""
    answers = read_parquet(cell.answers, ["item_id", "outcome"])
    if not answers["item_id"].is_unique:
        right = answers["outcome"] == "correct"
        answers = pd.concat([answers[~right], answers[right]]).drop_duplicates("item_id")
    own = next((stage for stage, tasks in enumerate(cell.run.trains, start=1) if cell.task in tasks), 0)
    return answers.assign(last=len(cell.run.stages), own_stage=own)


def place_rows(found: Sequence[tuple[CellRef, pd.DataFrame]]) -> pd.DataFrame:
    """Concatenate the rows of cells, each row with its run, stage and task."""
    places = pd.DataFrame([place_of(cell) for cell, _ in found])
    repeated = places.take(np.repeat(np.arange(len(found)), [len(rows) for _, rows in found])).reset_index(drop=True)
    rows = pd.concat([rows for _, rows in found], ignore_index=True)
    # A group's answers name their own task; here every row belongs to the cell's task.
    return pd.concat([repeated, rows.drop(columns=repeated.columns, errors="ignore")], axis=1)
