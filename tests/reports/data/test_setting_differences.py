"""Settings that differ besides the method are named, and seeds with different start weights are not paired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from harness.config.teacher_identity import full_identity
from reports.compare.comparison import Comparison
from reports.data.methods import Method, find_methods
from reports.data.setting_differences import describe_differences
from reports.report.build import build_report
from tests.support.reports.run_factory import write_run
from tests.support.runs import vouch

START = [0.5, 0.1, 0.6]
TRAINING: dict[str, Any] = {"steps": 80, "micro_batch": None, "optimizer": {"lr": 2e-4}}
CONFIG: dict[str, Any] = {
    "teacher": {"strength": "teacher"},
    "training": TRAINING,
    "stages": [{"task": "tiny_arithmetic", "training": TRAINING}, {"task": "tiny_weather"}],
    "adapter": {"adapter": "opd", "options": {}, "training": {}},
    "evaluation": {"profiles": [{"name": "greedy", "temperature": 0}], "limit": None},
    "device": "cpu",
}


def pair(tmp_path: Path, **changes: Any) -> tuple[Method, Method]:
    write_run(tmp_path, "opd", 0, config=CONFIG)
    write_run(tmp_path, "aopd", 0, config=CONFIG | changes)
    opd, aopd = find_methods([tmp_path])
    return opd, aopd


def test_the_method_itself_and_what_a_session_may_set_are_not_differences(tmp_path: Path):
    own = {"adapter": "aopd", "options": {"threshold": 0.2}, "training": {}}
    training = {**TRAINING, "micro_batch": 4}
    stages = [{"task": "tiny_arithmetic", "training": training}, {"task": "tiny_weather"}]
    assert describe_differences(*pair(tmp_path, adapter=own, device="cuda", training=training, stages=stages)) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher": {"strength": "good"}}, "more than the method: teacher (strength (teacher and good))."),
        (
            {"adapter": {"adapter": "aopd", "training": {"steps": 160}}},
            "more than the method: training.steps (80 and 160).",
        ),
        (
            {"adapter": {"adapter": "aopd", "training": {"optimizer": {"lr": 3e-5}}}},
            "settings: training.optimizer.lr (0.0002 and 3e-05).",
        ),
        (
            {"evaluation": {"profiles": [{"name": "greedy", "temperature": 1}], "limit": None}},
            "settings: evaluation.profiles.greedy.temperature (0 and 1).",
        ),
    ],
)
def test_what_differs_besides_the_method_is_named(tmp_path: Path, change: dict[str, Any], sentence: str):
    methods = pair(tmp_path, **change)
    (said,) = describe_differences(*methods)
    assert said.startswith("opd and aopd ")
    assert said.endswith(sentence)
    assert said in Comparison(methods).notes()


@pytest.mark.parametrize(
    ("teachers", "differ"),
    [
        (("a", "b"), True),
        ((full_identity("a", "x"), full_identity("a", "y")), True),
        ((full_identity("a", "x"), full_identity("a", "x")), False),
        (("a", full_identity("a", "x")), False),  # an earlier version recorded the weights alone
    ],
)
def test_teachers_differ_by_weights_or_configuration(tmp_path: Path, teachers: tuple[str, str], differ: bool):
    pair(tmp_path)
    for adapter, teacher in zip(("opd", "aopd"), teachers, strict=True):
        (file,) = tmp_path.glob(f"*/{adapter}/*/seed0/manifest.json")
        file.write_text(file.read_text().replace("digest-teacher", teacher))
        vouch(file)
    opd, aopd = find_methods([tmp_path])
    assert bool(describe_differences(opd, aopd)) == differ


@pytest.mark.usefixtures("blank_figures")
def test_a_report_names_unlike_methods_first_and_lists_all_settings_at_its_end(tmp_path: Path):
    own = {"adapter": "aopd", "training": {"steps": 160, "optimizer": {"lr": 3e-5}}}
    pair(tmp_path / "runs", adapter=own)
    page = build_report([tmp_path / "runs"], tmp_path / "report").with_suffix(".md").read_text(encoding="utf-8")
    plain = page.replace("\\", "")
    opening, _, end = plain.partition("## How this was made")
    assert "more than the method: training.steps (80 and 160)." in opening
    assert "settings: training.optimizer.lr (0.0002 and 3e-05)." in end


def groups(tmp_path: Path, weights: str = "") -> tuple[Method, Method]:
    for seed, (one, other) in enumerate([(0.5, 0.9), (0.6, 0.8), (0.4, 0.9)]):
        write_run(tmp_path, "opd", seed, [START, [one, 0.2, 0.5], [0.2, 0.7, 0.5]], items=20)
        start = f"{weights}{seed}" if weights else ""
        write_run(tmp_path, "aopd", seed, [START, [other, 0.2, 0.5], [0.2, 0.7, 0.5]], items=20, weights=start)
    opd, aopd = find_methods([tmp_path])
    return opd, aopd


NOTE = "opd and aopd start from different weights at equal seeds"


def test_seeds_that_start_from_different_weights_are_not_paired(tmp_path: Path):
    compared = Comparison(groups(tmp_path / "other", "elsewhere"))
    learned = next(row.difference for row in compared.rows if row.title == "learned: tiny_arithmetic")
    assert NOTE in " ".join(compared.notes())
    assert learned.by_seed == {}
    peer: Any = stats.ttest_ind([0.9, 0.8, 0.9], [0.5, 0.6, 0.4], equal_var=False).confidence_interval(0.95)
    assert (learned.seeds.low, learned.seeds.high) == pytest.approx((peer.low, peer.high))
    assert learned.item_count == 20
    assert learned.interval.mean == pytest.approx(learned.items.mean)


def test_seeds_that_start_from_equal_weights_are_paired(tmp_path: Path):
    compared = Comparison(groups(tmp_path))
    learned = next(row.difference for row in compared.rows if row.title == "learned: tiny_arithmetic")
    assert NOTE not in " ".join(compared.notes())
    assert learned.by_seed == pytest.approx({0: 0.4, 1: 0.2, 2: 0.5})
