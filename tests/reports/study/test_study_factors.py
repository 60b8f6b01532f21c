"""A study's results by method and learning rate, and the effects of a factor's values."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from harness.config.run_spec import RunSpec
from harness.errors import RunError
from harness.stats.intervals import BOUNDS
from reports.document.blocks import Text
from reports.study.build_study import build_study
from reports.study.factors import describe_extremes, factor_grid
from reports.study.study_frontier import frontier_blocks
from reports.study.study_results import Results, collect, unit_of
from tests.support.reports.study_factory import constant, fill, study

METHODS: dict[str, Any] = {"title": "Method", "entries": ["none", "sft", "opd", "aopd"]}
RATES: dict[str, Any] = {"title": "Rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4]}
STARTS: dict[str, Any] = {"title": "Start", "key": "student.strength", "values": ["weak", "strong"]}


def scores(spec: RunSpec, weak: float = 0.3, learned: float = 0.6, kept: float = 0.4) -> list[list[float]]:
    """OPD lifts the weak start by 10 points, AOPD by 30, both the strong start by 40 from 50; sft learns all."""
    if spec.suite.student.strength == "strong":  # type: ignore[union-attr]
        return constant(spec, 0.9, 0.5, start=0.5)
    reached = {"none": weak, "sft": 1.0, "opd": weak + 0.1, "aopd": learned}[spec.entry]
    return constant(spec, reached, min(reached, kept), start=weak)


def made(folder: Path, **levels: float) -> Results:
    plan = study(folder, {"method": METHODS, "rate": RATES, "start": STARTS}, seeds=[0, 1])
    fill(plan, lambda spec: scores(spec, **levels))
    return collect(plan)


@pytest.mark.usefixtures("blank_figures")
def test_a_method_trained_on_references_has_no_entropy_of_its_own_answers(tmp_path: Path):
    results = made(tmp_path)
    grid = factor_grid(results, "method")
    cells = {row[0]: dict(zip(grid.header, row, strict=True)) for row in grid.rows}
    assert cells["sft"]["entropy, nats"] == cells["sft"]["truncated %"] == "–"
    assert cells["opd"]["entropy, nats"].startswith("0.300")
    page = build_study(results.plan, tmp_path / "page.md").read_text(encoding="utf-8")
    assert re.search("No entropy .*for sft", page)


def test_a_method_with_one_learning_rate_is_not_called_best_at_it(tmp_path: Path):
    reading = frontier_blocks(made(tmp_path))[-1]
    assert isinstance(reading, Text)
    assert "sft (one lr, 0.0002) learned 100.0" in reading.text
    assert re.search(r"opd \(lr 0\.0001, the lowest tried, .*most of 2\)", reading.text)


def test_a_rate_is_that_of_the_method_s_own_training(tmp_path: Path):
    plan = study(tmp_path, {"method": METHODS}, overrides=["adapters.sft.training.optimizer={lr: 1.0e-3}"], seeds=[0])
    fill(plan, scores)
    results = collect(plan)
    assert list(results.layout.rates("weak", "sft")) == [1e-3]
    assert list(results.layout.rates("weak", "opd")) == [2e-4]
    assert set(results.points.loc[results.points["adapter"] == "sft", "learning_rate"]) == {1e-3}


def test_a_factor_that_fixes_something_else_gives_no_rate(tmp_path: Path):
    fixed = {**RATES, "fixed": {"training.optimizer.eps": 1.0e-5}, "values": [1.0e-4]}
    plan = study(tmp_path, {"rate": RATES, "other": {**fixed, "values": [3.0e-4]}}, seeds=[0])
    fill(plan, scores)
    assert list(collect(plan).layout.rates("weak", "opd")) == [1e-4, 2e-4]


def test_two_suites_at_one_rate_are_refused(tmp_path: Path):
    factor = {**RATES, "entries": ["sft"]}
    plan = study(tmp_path, {"rate": factor}, overrides=["adapters.sft.training.optimizer={lr: 1.0e-3}"], seeds=[0])
    fill(plan, scores)
    with pytest.raises(RunError, match=r"\bsft .*'weak' .*0\.001\b"):
        build_study(plan, tmp_path / "page.md")


def thresholds(folder: Path, learned: float) -> Results:
    factor = {"title": "T", "key": "adapters.aopd.options.threshold", "values": [-1.0, 0.2, 0.5], "entries": ["aopd"]}
    plan = study(folder, {"method": METHODS, "threshold": factor}, seeds=[0, 1])
    fill(plan, lambda spec: scores(spec, learned=learned if "--1.0" in spec.suite.name else 0.5))
    return collect(plan)


def test_thresholds_are_stated_as_paired_differences(tmp_path: Path):
    reading = describe_extremes(thresholds(tmp_path, 0.7), "threshold", "aopd")
    assert "learning is highest at −1, 70.0" in reading
    assert "(paired, in points: +20.0" in reading
    assert re.search(r"against aopd .*own setting, \+30\.0", reading)


def test_a_figure_that_no_threshold_has_is_not_stated(tmp_path: Path):
    factor = {"title": "T", "key": "adapters.aopd.options.threshold", "values": [0.0, 0.2, 0.5], "entries": ["aopd"]}
    plan = study(tmp_path, {"threshold": {**factor, "orders": ["joint"]}}, seeds=[0, 1])
    fill(plan, lambda spec: constant(spec, 0.5, 0.5))
    reading = describe_extremes(collect(plan), "threshold", "aopd")
    assert "forgetting" not in reading
    assert "nan" not in reading


def test_no_interval_of_a_study_leaves_the_values_that_its_figure_can_have(tmp_path: Path):
    """One seed of three has 1 in everything and the others 0, so that t intervals over seeds would pass 0 and 100 %."""
    plan = study(tmp_path, {"method": METHODS}, seeds=[0, 1, 2])
    ends = {0: 0.0, 1: 0.0, 2: 1.0}
    shares = ("truncated_share", "pull_up", "pull_down", "fkl_gradient_share")
    fill(
        plan,
        lambda spec: constant(spec, ends[spec.seed], ends[spec.seed], start=ends[spec.seed]),
        entropy=lambda spec: ends[spec.seed],
        logged=lambda spec: dict.fromkeys(shares, ends[spec.seed]),
    )
    results = collect(plan)
    one, other = (next(config for config in results.configs if config.adapter == name) for name in ("aopd", "opd"))
    for figure in results.values:
        low, high = BOUNDS[unit_of(str(figure))]
        mean, change = results.mean(one, str(figure)), results.paired(one, other, str(figure))
        assert math.isnan(mean.low) or low <= mean.low <= mean.high <= high, figure
        assert math.isnan(change.low) or low - high <= change.low <= change.high <= high - low, figure
    assert results.mean(one, "truncated_share").low == 0
    assert "−" not in factor_grid(results, "method").rows[2][-1]
