"""Learning curves: points inside a stage that change nothing of the training, and end where the evaluation begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError
from harness.evaluation.learning_curve import CurveRecorder
from harness.pipeline.run import run
from harness.rundir.reader import find_runs
from tests.support.models import byte_renderer
from tests.support.runs import FOLDERS, cells, manifest

KILLED = """
import os, signal, sys
from pathlib import Path
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.pipeline.run import run

def report(event):
    if f"{event.activity} {event.done}" == "stage 2 tiny_currency 2":
        os.kill(os.getpid(), signal.SIGKILL)

run(RunSpec(load_suite(sys.argv[1], ["evaluation.every=1", "snapshot_minutes=0"]), "aopd", 0, out=Path(sys.argv[2])), report)
"""


@pytest.fixture(scope="module")
def curved(micro_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite = load_suite(str(micro_file), ["evaluation.every=1"])
    return run(RunSpec(suite, "aopd", 0, out=tmp_path_factory.mktemp("curved")))


def test_a_curve_changes_nothing_of_the_training(curved: Path, aopd: Path):
    assert manifest(curved)["weights"] == manifest(aopd)["weights"]
    assert [cell["score"] for cell in cells(curved).values()] == [cell["score"] for cell in cells(aopd).values()]


def test_a_curve_has_the_stages_task_the_first_task_and_the_probes_at_every_step(curved: Path):
    (found,) = find_runs([curved])
    points = [(point.step, point.task) for point in found.curve_points(2)]
    assert points == [(step, task) for step in (0, 1, 2) for task in ("tiny_currency", "tiny_weather", "tiny_reminder")]
    assert {point.task for point in found.curve_points(1)} == {"tiny_weather", "tiny_reminder"}


def test_a_curve_begins_and_ends_with_the_evaluations_before_and_after_the_stage(curved: Path):
    (found,) = find_runs([curved])
    for stage in (1, 2):
        for point in found.curve_points(stage):
            if point.step in (0, 2):
                after = FOLDERS[stage - 1 if point.step == 0 else stage]
                graded = pd.read_parquet(curved / after / "eval" / point.task / "samples.parquet")
                assert list(point.items) == graded["score"].tolist()
                assert list(point.clusters) == graded["cluster"].tolist()
                assert point.score == pytest.approx(graded["score"].mean())


def test_a_point_is_due_at_every_so_many_steps_and_at_the_end(micro_file: Path, tmp_path: Path):
    suite = load_suite(str(micro_file), ["evaluation.every=2", "training.steps=3", "evaluation.curve_items=2"])
    (found,) = find_runs([run(RunSpec(suite, "sft", 0, out=tmp_path))])
    points = list(found.curve_points(1))
    assert sorted({point.step for point in points}) == [0, 2, 3]
    assert {len(point.items) for point in points} == {2}


def test_all_points_are_of_the_weights_with_which_training_computes(
    micro_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scored: list[tuple[int, set[torch.dtype]]] = []
    record = CurveRecorder.record

    def spy(self: Any, step: int) -> None:
        scored.append((step, {weight.dtype for weight in self.engine.model.parameters()}))
        record(self, step)

    monkeypatch.setattr(CurveRecorder, "record", spy)
    settings = ["training.precision=bfloat16_master", "stages=[tiny_weather]", "probes=[]", "evaluation.limit=1"]
    with_curve, without = (
        run(RunSpec(load_suite(str(micro_file), [*settings, *every]), "sft", 0, out=tmp_path / name))
        for name, every in (("with", ["evaluation.every=1"]), ("without", []))
    )
    assert scored == [(step, {torch.bfloat16}) for step in (0, 1, 2)]
    assert manifest(with_curve)["weights"] == manifest(without)["weights"]


@pytest.mark.slow
def test_a_curve_under_a_sampling_profile_draws_the_answers_of_its_evaluation(micro_file: Path, tmp_path: Path):
    profiles = "{greedy: {temperature: 0}, sampled: {temperature: 1, n: 3}}"
    settings = [f"evaluation.profiles={profiles}", "evaluation.every=2", "evaluation.curve_profile=sampled"]
    for answers in (1, 3):
        suite = load_suite(str(micro_file), [*settings, f"evaluation.curve_answers={answers}"])
        (found,) = find_runs([run(RunSpec(suite, "sft", 0, out=tmp_path / str(answers)))])
        assert found.manifest.curve_profile == "sampled"
        (point,) = (each for each in found.curve_points(1) if (each.step, each.task) == (2, "tiny_weather"))
        drawn = pd.read_parquet(found.cell_path(1, "tiny_weather", "sampled") / "samples.parquet")
        by_item = drawn.groupby("item_id", sort=False)["score"]
        assert list(point.items) == pytest.approx((by_item.first() if answers == 1 else by_item.mean()).tolist())


def test_several_greedy_answers_and_an_unknown_profile_are_refused(micro_file: Path):
    with pytest.raises(ConfigError, match="curve_answers is 2"):
        load_suite(str(micro_file), ["evaluation.curve_answers=2", "evaluation.decoding.temperature=0"])
    with pytest.raises(ConfigError, match="curve_profile is 'paper'"):
        load_suite(str(micro_file), ["evaluation.curve_profile=paper"])


def test_a_suite_without_a_curve_keeps_its_hash_and_writes_no_points(micro: Suite, aopd: Path):
    assert "every" not in RunSpec(micro, "aopd", 0).config()["evaluation"]
    (found,) = find_runs([aopd])
    assert list(found.curve_points(1)) == []


def test_a_cut_line_of_a_curve_is_no_obstacle(curved: Path, tmp_path: Path):
    """As a power cut leaves it: the recorder reads which steps it has before the snapshot is taken back."""
    whole = (curved / FOLDERS[1] / "train" / "curve.jsonl").read_text()
    (tmp_path / "curve.jsonl").write_text(whole[:-20])
    never: Any = None  # no engine: a recorded step asks nothing
    CurveRecorder({}, never, byte_renderer(), 2, 0, tmp_path).record(0)
    assert (tmp_path / "curve.jsonl").read_text() == whole[:-20]


@pytest.mark.slow
def test_a_killed_stage_ends_with_the_curve_of_an_undisturbed_one(curved: Path, micro_file: Path, tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(micro_file), str(tmp_path)], env=dict(os.environ))
    assert killed.returncode == -9
    suite = load_suite(str(micro_file), ["evaluation.every=1", "snapshot_minutes=0"])
    path = run(RunSpec(suite, "aopd", 0, out=tmp_path))
    for stage in FOLDERS[1:]:
        lines = [(folder / stage / "train/curve.jsonl").read_text().splitlines() for folder in (path, curved)]
        assert [json.loads(line) for line in lines[0]] == [json.loads(line) for line in lines[1]]
