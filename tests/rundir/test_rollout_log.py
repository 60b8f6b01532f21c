"""Kept rollouts: their figures are the step log's and those of dense logits, and a resumed stage has each once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from adapters.aopd import AOPD
from adapters.sft import SFT
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.lm.rollouts import Rollout
from harness.pipeline.run import run
from harness.rundir.training.rollout_log import COLUMNS, TOKEN_FIGURES, RolloutLog
from harness.rundir.training.snapshots import FileSnapshots
from tests.support.models import byte_renderer, dense_logprobs, example, local_teacher, qwen3
from tests.support.runs import FOLDERS, changed_suite
from tests.support.stages import stage

Kept = list[tuple[int, str, Sequence[Rollout], Sequence[Mapping[str, float]]]]


def test_figures_of_a_rollout_are_means_of_dense_log_probabilities():
    kept: Kept = []
    ctx = replace(stage({"micro_batch": 4}), keep=lambda *step: kept.append(step))
    AOPD(top_k=4).train_stage(ctx)
    ((step, source, rollouts, figures),) = kept
    assert (step, source, len(rollouts)) == (0, "student", 6)
    student, teacher = qwen3(), local_teacher().model
    for rollout, found in zip(rollouts, figures, strict=True):
        ids, first = rollout.prompt_and_response, len(rollout.example.prompt) - 1
        rows = torch.arange(len(rollout.response))
        with torch.no_grad():
            q, p = (dense_logprobs(model, ids)[first:-1] for model in (student, teacher))
        response = torch.tensor(rollout.response)
        logq, logp = q[rows, response], p[rows, response]
        assert found["student_logprob"] == pytest.approx(float(logq.mean()), abs=1e-6)
        assert found["teacher_logprob"] == pytest.approx(float(logp.mean()), abs=1e-6)
        assert found["advantage"] == pytest.approx(float((logp - logq).mean()), abs=1e-6)
        assert found["entropy"] == pytest.approx(float(-(q.exp() * q).sum(-1).mean()), abs=1e-6)
        assert found["teacher_top1"] == pytest.approx(float((p.argmax(-1) == response).float().mean()))
        assert found["routed_fkl"] == pytest.approx(float((logp <= logq).float().mean()))


def test_a_method_without_a_teacher_knows_no_more_than_its_own_figures():
    kept: Kept = []
    SFT().train_stage(replace(stage(), keep=lambda *step: kept.append(step)))
    _, source, _, figures = kept[0]
    assert source == "data"
    assert all(set(found) == {"student_logprob", "entropy"} for found in figures)


def test_rollouts_of_a_run_add_up_to_its_step_log(aopd: Path):
    for folder in FOLDERS[1:]:
        train = aopd / folder / "train"
        rows = pd.read_parquet(train / "rollouts.parquet")
        assert list(rows.columns) == COLUMNS.names
        assert len(rows) == 2 * 4
        for line in map(json.loads, (train / "steps.jsonl").read_text().splitlines()):
            part = rows[rows["step"] == line["step"]]
            assert part["rollout"].tolist() == [0, 1, 2, 3]
            for name, logged in (("entropy", "entropy"), ("advantage", "advantage_mean"), ("routed_fkl", "routed_fkl")):
                assert np.average(part[name], weights=part["tokens"]) == pytest.approx(line[logged], abs=1e-5)
            assert (part["finish"] == "length").mean() == line["truncated_share"]
        assert (rows["response_ids"].map(len) == rows["tokens"]).all()
        assert rows["prompt"].str.contains("user").all()
        assert not (train / "rollouts.jsonl").exists()


@pytest.mark.parametrize(("kept", "expected"), [(None, 4), (3, 3), (0, 0)])
def test_a_suite_says_how_many_are_kept_and_its_runs_stay_the_same(kept: int | None, expected: int, tmp_path: Path):
    suite = changed_suite(tmp_path, lambda raw: raw.update(keep_rollouts=kept))
    assert RunSpec(suite, "sft", 0).config() == RunSpec(changed_suite(tmp_path, lambda _: None), "sft", 0).config()
    trajectories = RolloutLog(tmp_path, byte_renderer(), suite.keep_rollouts)
    rollouts = [Rollout(example([65, 66]), [67 + i], "stop") for i in range(4)]
    trajectories.keep(0, "student", rollouts, [{"advantage": float(i)} for i in range(4)])
    trajectories.finish()
    if not expected:
        assert not trajectories.parquet.exists()
        return
    rows = pd.read_parquet(trajectories.parquet)
    assert rows["advantage"].tolist() == [float(i) for i in range(expected)]
    assert rows[[name for name in TOKEN_FIGURES if name != "advantage"]].isna().all(axis=None)
    assert rows["prompt"].iloc[0] == byte_renderer().tokenizer.decode([65, 66])


def test_a_resumed_stage_keeps_each_rollout_once(tmp_path: Path):
    trajectories = RolloutLog(tmp_path, byte_renderer(), None)
    rollouts = [Rollout(example([65]), [66], "stop")] * 2
    snapshots = FileSnapshots(tmp_path, 0)
    for step in range(3):
        trajectories.keep(step, "student", rollouts, [{}, {}])
        if step == 1:
            snapshots.offer(2, lambda: {"weights": torch.ones(1)})
    with trajectories.log.open("a") as file:
        file.write('{"step": 3, "half')
    assert FileSnapshots(tmp_path, 0).load() is not None
    for step in (2, 3):
        trajectories.keep(step, "student", rollouts, [{}, {}])
    trajectories.finish()
    assert pd.read_parquet(trajectories.parquet)["step"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    trajectories.clear()
    assert not trajectories.log.exists()


def test_adapters_that_train_elsewhere_leave_none(micro: Suite, tmp_path: Path):
    spec = RunSpec(micro, "none", 0, out=tmp_path)
    run(spec)
    assert not list(spec.path.rglob("rollouts.*"))


def test_a_large_log_is_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.rundir.training.rollout_log.LINES", 3)
    trajectories = RolloutLog(tmp_path, byte_renderer(), None)
    rollouts: list[Any] = [Rollout(example([65]), [66, 67], "length", 0.5, 0.25)] * 7
    trajectories.keep(0, "student", rollouts, [{}] * 7)
    trajectories.finish()
    rows = pd.read_parquet(trajectories.parquet)
    assert rows["rollout"].tolist() == list(range(7))
    assert set(rows["credit"]) == {0.5}
    assert set(rows["reward"]) == {0.25}
