"""The doctor's arithmetic from a short run to a whole one, and to all runs of a suite, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.evaluation.groups import load_evaluation_plan
from harness.lmeval.library import TaskLibrary
from harness.pipeline.needs.extrapolation import (
    CellPlan,
    MeasuredCell,
    MeasuredRun,
    MeasuredStage,
    RunPlan,
    StagePlan,
    Times,
    extrapolate,
    points_of,
    seconds_of_all,
)
from harness.pipeline.needs.probe import plan_of
from tests.support.models import micro_suite, write_yaml

# Two stages of 4 measured steps; the first step of each is slower. 10 items of each cell are measured.
STAGES = {
    "sums": MeasuredStage(seconds=9.0, steps=[3.0, 1.0, 2.0, 3.0]),
    "calls": MeasuredStage(seconds=5.0, steps=[2.0, 1.0, 1.0, 1.0]),
}
CELL = {"sums": MeasuredCell(items=10, seconds=4.0, size=100.0, head=7.0)}
SHORT = MeasuredRun(train=14.0, evaluate=15.0, total=31.0, stages=STAGES, cells=[CELL, CELL, CELL], teacher={})
PLAN = RunPlan(stages={"sums": StagePlan(100), "calls": StagePlan(50)}, cells={"sums": CellPlan(items=25)})


def test_further_steps_take_the_median_step_and_further_items_the_measured_ones_time():
    found = extrapolate(SHORT, PLAN)
    # 96 more steps of 2 s and 46 of 1 s; in each of 3 evaluations 15 more items of 0.4 s.
    assert found.stages == {"sums": 9 + 96 * 2, "calls": 5 + 46 * 1}
    assert found.train == 14 + 192 + 46
    assert found.evaluate == pytest.approx(15 + 3 * 6)
    assert found.total == pytest.approx(31 + 192 + 46 + 18)
    assert found.sample_bytes == 3 * (7 + 250)


def test_a_run_that_is_as_short_as_the_probe_takes_what_the_probe_took():
    same = RunPlan(stages={"sums": StagePlan(4), "calls": StagePlan(4)}, cells={"sums": CellPlan(items=10)})
    found = extrapolate(SHORT, same)
    assert (found.train, found.evaluate, found.total) == (14, 15, 31)


def test_a_single_step_counts_as_it_is():
    one = replace(SHORT, stages={"sums": MeasuredStage(3.0, [3.0]), "calls": MeasuredStage(2.0, [2.0])})
    assert extrapolate(one, PLAN).stages == {"sums": 3 + 99 * 3, "calls": 2 + 49 * 2}


def test_each_profile_has_a_cell_with_all_of_its_answers():
    cells = {
        "sums": MeasuredCell(10, 4.0),
        "sums@greedy": MeasuredCell(10, 3.0),
        "sums@sixteen": MeasuredCell(10, 64.0),  # 160 answers
    }
    short = replace(SHORT, cells=[cells, cells, cells], evaluate=213.0, total=230.0)
    plan = replace(PLAN, cells=dict.fromkeys(cells, CellPlan(25)))
    assert extrapolate(short, plan).evaluate == pytest.approx(213 + 3 * 1.5 * 71)


def test_a_curve_adds_its_points_to_the_training_of_each_stage():
    assert [points_of(steps, 40) for steps in (100, 80, 30)] == [4, 3, 2]  # 0, 40, 80, 100; 0, 40, 80; 0, 30
    assert points_of(100, None) == 0
    stages = {"sums": replace(STAGES["sums"], seconds=13.0, points=2), "calls": replace(STAGES["calls"], points=2)}
    plan = replace(PLAN, stages={"sums": StagePlan(100, points=4), "calls": StagePlan(50, points=3)})
    found = extrapolate(replace(SHORT, stages=stages), plan)
    # 9 of 13 s are steps, so a point takes 2 s, and two more are to come; of calls all 5 s are steps.
    assert found.stages == {"sums": 13 + 96 * 2 + 2 * 2, "calls": 5 + 46 * 1}


def test_the_start_is_repeated_and_the_teacher_answered_once():
    plan = replace(PLAN, cells={"sums": CellPlan(25, sampled=True), "calls": CellPlan(25)}, repeats=3)
    start = CELL | {"calls": MeasuredCell(10, 2.0)}
    found = extrapolate(replace(SHORT, cells=[start, CELL, CELL], teacher={"calls": MeasuredCell(10, 20.0)}), plan)
    assert found.evaluate == pytest.approx(15 + 3 * 6 + 3 + 30 + 3 * 10)
    assert found.common == pytest.approx(10 + 5 + 3 * 10)
    assert found.teacher == pytest.approx(50)
    assert found.sample_bytes == 3 * 257 + 3 * 257


def test_what_methods_of_a_seed_share_is_counted_once():
    shared = replace(PLAN, stages={"sums": StagePlan(100, shared=True), "calls": StagePlan(50)})
    found = extrapolate(SHORT, shared)
    assert found.common == pytest.approx(10 + (9 + 96 * 2) + 10)
    one = Times(train=60, evaluate=40, total=100, stages={}, common=30, teacher=10, sample_bytes=0)
    none = Times(train=0, evaluate=25, total=25, stages={}, common=25, teacher=0, sample_bytes=0)
    assert seconds_of_all([one], 1) == 100
    assert seconds_of_all([one], 3) == 3 * 90 + 10
    assert seconds_of_all([one, replace(one, total=150), none], 3) == 3 * (60 + 110) + 3 * 30 + 10


def test_a_method_that_trains_nothing_and_answers_again_takes_its_evaluation_of_the_start():
    control = MeasuredRun(train=0.0, evaluate=5.0, total=6.0, stages={}, cells=[CELL, {}, {}], teacher={})
    found = extrapolate(control, PLAN)
    assert (found.train, found.stages) == (0, {})
    assert found.total == pytest.approx(6 + 6)


def test_the_plan_of_a_suite_names_what_takes_time(tmp_path: Path):
    raw = micro_suite()
    raw["evaluation"] = {
        "limit": 6, "every": 2, "curve_items": 4, "noise_floor": 2,
        "profiles": {"greedy": {"temperature": 0}, "many": {"temperature": 0.6, "n": 5, "pass_at": [5]}},
    }  # fmt: skip
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", raw)))
    plan = plan_of(RunSpec(suite, "opd", 0), load_evaluation_plan(TaskLibrary(), suite))
    first, second = plan.stages
    steps = raw["training"]["steps"]
    assert plan.repeats == 2
    assert plan.stages[first] == StagePlan(steps, points=points_of(steps, 2))
    assert plan.cells[first] == CellPlan(items=6)
    assert plan.cells[f"{second}@many"] == CellPlan(items=6, sampled=True)
