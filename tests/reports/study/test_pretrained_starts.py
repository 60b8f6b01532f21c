"""Studies of pretrained students with named starts: claims from each start, and on pairs of starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.pipeline.run import run
from reports.claims.render_verdicts import describe_claim
from reports.study.study_results import collect
from reports.study.study_verdicts import judge_study
from tests.support.models import micro_suite, write_yaml
from tests.support.reports.study_factory import constant, fill, study

STARTS: dict[str, Any] = {"start": {"title": "Start", "key": "student.start", "values": ["weak", "strong"]}}
PAIR = "AOPD's gain in tiny_weather is larger from the weak start than from the strong one"


def suite_with_starts(folder: Path, weak: Path, strong: Path, **changes: Any) -> str:
    starts = {"weak": {"path": str(weak)}, "strong": {"path": str(strong)}}
    student = {"kind": "pretrained", "starts": starts, "start": "weak", "chat": {"template": "chatml"}}
    return str(write_yaml(folder / "suite.yaml", micro_suite() | {"student": student, **changes}))


def test_claims_are_judged_from_each_named_start_and_on_pairs_of_them(tmp_path: Path):
    folders = [tmp_path / name for name in ("weak", "strong")]
    for folder in folders:
        folder.mkdir()
    plan = study(tmp_path, STARTS, suite=suite_with_starts(tmp_path, *folders))
    gain = {"weak": 0.3, "strong": 0.1}
    fill(
        plan, lambda s: constant(s, 0.4 + (gain[s.suite.student.start_name] + 0.01 * s.seed) * (s.entry == "aopd"), 0.3)
    )
    found = {describe_claim(each): each for each in judge_study(collect(plan))}
    assert found["AOPD learns more than OPD, weak start"].effect.mean == pytest.approx(0.31)
    assert found["AOPD learns more than OPD, strong start"].effect.mean == pytest.approx(0.11)
    assert found[PAIR].effect.mean == pytest.approx(0.2)
    assert (found[PAIR].place.start, found[PAIR].place.other) == ("weak", "strong")


@pytest.mark.slow
def test_pairs_of_starts_are_judged_on_trained_models(student_folder: Path, teacher_folder: Path, tmp_path: Path):
    profiles = {"greedy": {"temperature": 0}, "paper": {"temperature": 0.6}}
    evaluation = {"limit": 4, "batch_size": 8, "decoding": {"max_gen_toks": 24}, "profiles": profiles}
    file = suite_with_starts(tmp_path, student_folder, teacher_folder, stages=["tiny_weather"], evaluation=evaluation)
    plan = study(tmp_path, STARTS, suite=file)
    assert len(plan.specs) == 12
    for spec in plan.specs:
        run(spec)
    found = {describe_claim(each): each for each in judge_study(collect(plan))}
    assert (found[PAIR].effect.seeds, found[PAIR].reason) == (3, "")
    weights = {(r.start, r.manifest.weights["start"]) for r in collect(plan).frames.runs}
    assert len(weights) == len({start for start, _ in weights}) == 2
