"""The tiny suite shows learning and forgetting: its start leaves room, its stages teach, and earlier tasks are forgotten.

The figures are those of the shipped study of the suite's present tasks, every seed of it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "docs" / "results" / "verdicts" / "runs.csv"


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """The figures of the weak start at the suite's own learning rate, one column per figure."""
    table = pd.read_csv(RUNS)
    table = table[(table["order"] == "default") & (table["start"] == "weak") & (table["learning_rate"] == 2e-4)]
    keys = ["adapter", "seed"]
    return table.drop_duplicates([*keys, "figure"]).pivot(index=keys, columns="figure", values="value").reset_index()


def test_the_weak_start_leaves_room_above_and_below(runs: pd.DataFrame):
    """The control trains nothing, so its final score is the start's."""
    start = runs.loc[runs["adapter"] == "none", "average_accuracy"]
    assert len(start) >= 5
    assert start.between(0.10, 0.60).all()


def test_stages_lift_their_own_tasks_for_every_method(runs: pd.DataFrame):
    trained = runs[runs["adapter"] != "none"].groupby("adapter")["plasticity"]
    assert trained.mean().min() >= 0.20


def test_forgetting_is_measurable_and_not_total_for_some_method(runs: pd.DataFrame):
    """Every seed forgets at least 5 points and keeps at least a fifth of the learned scores."""
    trained = runs[runs["adapter"] != "none"].groupby("adapter")
    least = trained[["forgetting_chaudhry", "retention_ratio"]].min()
    assert ((least["forgetting_chaudhry"] >= 0.05) & (least["retention_ratio"] >= 0.20)).any()
