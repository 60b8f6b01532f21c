"""Calibration: the score of sampled minus greedy answers of the same weights, next to entropy and in comparisons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.rundir.files import write_json
from reports.claims.claim_file import read_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import judge_claims
from reports.compare.comparison import Comparison
from reports.data.calibration import CALIBRATION, calibration, calibration_table, uncalibrated_tasks
from reports.data.frames import load_frames
from reports.data.methods import Method, find_methods, methods_of
from tests.support.reports.run_factory import SCORES, STAGES, write_run
from tests.support.runs import vouch

SAMPLED: dict[str, Any] = {"temperature": 1, "top_p": None, "top_k": None}


def write(
    root: Path, adapter: str, seed: int, greedy: float, sampled: float, decoding: dict[str, Any] = SAMPLED
) -> None:
    """Write a run whose tasks score `greedy` right after their own stage, and `sampled` under a second profile."""
    scores, further = ([[0.5, 0.1, 0.6], [one, 0.2, 0.5], [0.3, one, 0.4]] for one in (greedy, sampled))
    profiles = [{"name": "greedy", "temperature": 0.0}, {"name": "policy", **decoding}]
    config = {"evaluation": {"profiles": profiles}}
    write_run(root, adapter, seed, scores, further={"policy": further}, config=config)


def method(path: Path) -> Method:
    (found,) = find_methods([path], least=1)
    return found


def test_it_is_the_sampled_minus_the_greedy_score_right_after_a_task_s_own_stage(tmp_path: Path):
    for seed, sampled in enumerate((0.5, 0.6, 0.7)):
        write(tmp_path, "aopd", seed, 0.8, sampled)
    found = calibration(method(tmp_path))
    assert found.by_seed == pytest.approx({0: -0.3, 1: -0.2, 2: -0.1})
    assert set(found.items) == set(STAGES)


def test_a_profile_that_truncates_or_cools_is_not_the_policy(tmp_path: Path):
    for number, changes in enumerate(({"temperature": 0.6}, {"top_p": 0.95}, {"top_k": 20})):
        root = tmp_path / str(number)
        write(root, "aopd", 0, 0.8, 0.5, {**SAMPLED, **changes})
        assert calibration(method(root)).by_seed == {}
    write_run(tmp_path / "one", "aopd")
    assert calibration(method(tmp_path / "one")).by_seed == {}


def test_the_suite_s_decoding_counts_below_a_profile_s_own(tmp_path: Path):
    profiles = [{"name": "greedy", "temperature": 0.0}, {"name": "policy", **SAMPLED}]
    for decoding, known in (({"top_k": 20}, False), ({"top_k": None}, True)):
        root = tmp_path / str(known)
        config = {"evaluation": {"profiles": profiles, "decoding": decoding}}
        write_run(root, "aopd", further={"policy": SCORES}, config=config)
        assert bool(calibration(method(root)).by_seed) is known


def test_it_stands_next_to_entropy_and_in_comparisons(tmp_path: Path):
    for seed in range(3):
        write(tmp_path, "opd", seed, 0.8, 0.7)
        write(tmp_path, "aopd", seed, 0.9, 0.5 + 0.1 * (seed == 1))
    frames = load_frames([tmp_path])
    means = {row["label"]: row["calibration"].mean for row in calibration_table(methods_of(frames)).to_dict("records")}
    assert means == pytest.approx({"opd": -0.1, "aopd": -1.1 / 3})
    compared = Comparison(find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"]))
    row = compared.row("aopd", CALIBRATION)
    assert row is not None
    assert row.difference.by_seed == pytest.approx({0: -0.3, 1: -0.2, 2: -0.3})


def drop_from_policy(run: Path, task: str) -> None:
    """Take a task out of the second profile, as one that is scored by likelihood is."""
    found = json.loads((run / "manifest.json").read_text())
    found["profiles"]["policy"].remove(task)
    write_json(run / "manifest.json", found)


def test_only_tasks_of_both_profiles_are_subtracted(tmp_path: Path):
    """The first task scores 60 greedily and 55 sampled; the second, at 90, exists greedily alone."""
    config = {"evaluation": {"profiles": [{"name": "greedy", "temperature": 0.0}, {"name": "policy", **SAMPLED}]}}
    for adapter in ("opd", "aopd"):
        for seed in range(3):
            scores, sampled = ([[0.5, 0.1, 0.6], [one, 0.2, 0.5], [0.3, 0.9, 0.4]] for one in (0.6, 0.55))
            run = write_run(tmp_path, adapter, seed, scores, items=20, further={"policy": sampled}, config=config)
            drop_from_policy(run, STAGES[1])
    methods = find_methods([tmp_path])
    assert calibration(methods[0]).by_seed == pytest.approx(dict.fromkeys(range(3), -0.05))
    assert uncalibrated_tasks(methods[0]) == [STAGES[1]]
    assert list(calibration_table(methods)["without"]) == [STAGES[1]] * 2
    assert [note for note in Comparison(methods).notes() if STAGES[1] in note and CALIBRATION.short in note]
    (tmp_path / "claims.yaml").write_text(CLAIM, encoding="utf-8")
    (row,) = judge_claims([read_claims(tmp_path / "claims.yaml")], Evidence(methods))
    assert STAGES[1] in row.compared


@pytest.mark.parametrize(
    ("own", "left_out"),
    [({"top_k": 20}, True), ({"top_p": 0.9}, True), ({"top_k": -1, "top_p": 1.0}, False)],
)
def test_a_task_whose_file_truncates_is_left_out(tmp_path: Path, own: dict[str, Any], left_out: bool):
    """Suite and profile say nothing of truncation; the second task's cells record what its file says.

    The first task scores 80 greedily and 50 sampled, the second 90 and 70: the mean of both is -25 points.
    """
    profiles = [{"name": "greedy", "temperature": 0.0}, {"name": "policy", "temperature": 1}]
    scores, sampled = ([[0.5, 0.1, 0.6], [one, 0.2, 0.5], [0.3, two, 0.4]] for one, two in ((0.8, 0.9), (0.5, 0.7)))
    for adapter in ("opd", "aopd"):
        config = {"evaluation": {"profiles": profiles}}
        run = write_run(tmp_path, adapter, 0, scores, further={"policy": sampled}, config=config)
        for task, stated in ((STAGES[0], {}), (STAGES[1], own)):
            for file in run.glob(f"stage_*/eval/{task}@policy/results.json"):
                found = json.loads(file.read_text())
                found["keys"]["fields"] = {"settings": {"until": ["\n"], "temperature": 1.0, **stated}}
                write_json(file, found)
                vouch(file)
    methods = find_methods([tmp_path])
    assert calibration(methods[0]).by_seed == pytest.approx({0: -0.3 if left_out else -0.25})
    assert uncalibrated_tasks(methods[0]) == ([STAGES[1]] if left_out else [])
    notes = [note for note in Comparison(methods).notes() if STAGES[1] in note and CALIBRATION.short in note]
    assert len(notes) == left_out


CLAIM = """
title: A trial
source: nowhere
claims:
  - name: falls
    text: AOPD falls further behind where its policy is sampled
    expression: metric(aopd, calibration) < metric(opd, calibration)
    unit: points
    smallest_effect: 0
"""


def test_a_claim_can_be_made_of_it(tmp_path: Path):
    for seed in range(3):
        write(tmp_path, "opd", seed, 0.8, 0.7)
        write(tmp_path, "aopd", seed, 0.9, 0.5 + 0.1 * (seed == 1))
    (tmp_path / "claims.yaml").write_text(CLAIM, encoding="utf-8")
    file = read_claims(tmp_path / "claims.yaml")
    (row,) = judge_claims([file], Evidence(find_methods([tmp_path / "tiny"])))
    assert row.effect.mean == pytest.approx(0.1 - 1.1 / 3)
    write_run(tmp_path / "b", "opd")
    write_run(tmp_path / "b", "aopd")
    (untested,) = judge_claims([file], Evidence(find_methods([tmp_path / "b"])))
    assert re.fullmatch("aopd .*greedily and at temperature 1", untested.reason)
