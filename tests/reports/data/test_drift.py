"""Frames of drift and noise: equal to the files, and nan for runs of versions that did not measure them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.pipeline.run import run
from reports.data.frames import load_frames
from tests.support.runs import changed_suite


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control run with sampled answers whose start was evaluated twice more."""
    folder = tmp_path_factory.mktemp("measured")
    profiles = {"greedy": {}, "sampled": {"temperature": 1.0}}
    suite: Suite = changed_suite(folder, lambda raw: raw["evaluation"].update(noise_floor=2, profiles=profiles))
    return run(RunSpec(suite, "sft", 0, out=folder / "runs"))


def test_drift_has_a_row_per_task_and_one_for_all_after_every_stage(measured: Path):
    frame = load_frames([measured]).drift
    tasks = ["", "tiny_weather", "tiny_currency", "tiny_reminder"]
    assert frame["task"].tolist() == tasks * 3
    assert frame["stage"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    last = json.loads((measured / "stage_2_tiny_currency/drift/results.json").read_text())
    row = frame[(frame["stage"] == 2) & (frame["task"] == "tiny_weather")].iloc[0]
    assert row["kl_to_start"] == last["tasks"]["tiny_weather"]["kl_to_start"] > 0
    assert row["entropy"] == last["tasks"]["tiny_weather"]["entropy"]
    items = pd.read_parquet(measured / "stage_2_tiny_currency/drift/samples.parquet")
    assert items.loc[items["task"] == "tiny_weather", "kl_to_start"].mean() == pytest.approx(row["kl_to_start"])


def test_noise_is_the_spread_of_the_starts_scores(measured: Path):
    frame = load_frames([measured]).noise
    assert frame["task"].tolist() == ["tiny_weather", "tiny_currency", "tiny_reminder"]
    assert set(frame["profile"]) == {"sampled"}
    folders = ["eval/tiny_weather@sampled", "noise/tiny_weather@sampled/1", "noise/tiny_weather@sampled/2"]
    scores = [json.loads((measured / "stage_0" / name / "results.json").read_text())["score"] for name in folders]
    assert frame["noise_floor"].iloc[0] == pytest.approx(np.std(scores, ddof=1))
    assert frame["repeats"].tolist() == [2, 2, 2]


def test_runs_that_measured_nothing_are_nan(measured: Path, tmp_path: Path):
    shutil.copytree(measured, tmp_path / "old")
    for folder in tmp_path.glob("old/stage_*"):
        shutil.rmtree(folder / "drift")
        shutil.rmtree(folder / "noise", ignore_errors=True)
    frames = load_frames([tmp_path / "old"])
    assert frames.drift["task"].tolist() == [""] * 3
    assert frames.drift["kl_to_start"].isna().all()
    assert frames.noise.empty
    assert isinstance(frames.scores, pd.DataFrame)
