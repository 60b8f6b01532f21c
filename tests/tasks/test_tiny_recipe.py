"""The tiny suite shows learning and forgetting: its start leaves room, its stages teach, and earlier tasks are forgotten."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

RUNS = Path(__file__).parents[2] / "docs" / "results" / "tiny" / "runs.csv"
OFF_POLICY = {"none", "sft"}
OWN_RATE = 2e-4


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """The figures of the shipped study's default order and method factor, one column per figure."""
    table = pd.read_csv(RUNS)
    table = table[(table["order"] == "default") & (table["suite"] == "tiny") | (table["factor"] == "learning_rate")]
    keys = ["suite", "adapter", "learning_rate", "seed"]
    return table.drop_duplicates([*keys, "figure"]).pivot(index=keys, columns="figure", values="value").reset_index()


def test_the_weak_start_leaves_room_above_and_below(runs: pd.DataFrame):
    """The control trains nothing, so its final score is the start's."""
    start = runs.loc[runs["adapter"] == "none", "average_accuracy"]
    assert start.between(0.10, 0.60).all()


def test_stages_lift_their_own_tasks_for_some_method_that_learns_from_its_own_answers(runs: pd.DataFrame):
    on_policy = runs[~runs["adapter"].isin(OFF_POLICY) & (runs["learning_rate"] == OWN_RATE)]
    assert on_policy.groupby("adapter")["plasticity"].mean().max() >= 0.20


def test_forgetting_is_measurable_and_not_total_for_some_method_and_rate(runs: pd.DataFrame):
    """Every seed forgets at least 5 points and keeps at least a fifth of the learned scores."""
    on_policy = runs[~runs["adapter"].isin(OFF_POLICY)]
    least = on_policy.groupby(["adapter", "learning_rate"])[["forgetting_chaudhry", "retention_ratio"]].min()
    assert ((least["forgetting_chaudhry"] >= 0.05) & (least["retention_ratio"] >= 0.20)).any()
