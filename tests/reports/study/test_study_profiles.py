"""A study under several profiles: differences next to each other, changes of sign, calibration, ends below the start."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.config.run_spec import RunSpec
from harness.rundir.files import write_json
from reports.document.blocks import Block, Bullets, Grid, Text
from reports.formatting import format_interval, format_points
from reports.study.factors import factor_grid
from reports.study.profile_blocks import describe_ends_below, describe_learned_and_ended, profile_blocks
from reports.study.study_results import Results, collect
from tests.support.reports.run_factory import write_finished
from tests.support.reports.study_factory import constant, study

METHODS: dict[str, Any] = {"method": {"title": "Method", "entries": ["opd", "aopd"]}}
LEARNED = {"greedy": {"opd": 0.5, "aopd": 0.7}, "policy": {"opd": 0.5, "aopd": 0.4}}


def scores(spec: RunSpec, profile: str) -> list[list[float]]:
    learned = LEARNED[profile][spec.entry] + 0.01 * spec.seed * (spec.entry == "aopd")
    return constant(spec, learned, learned - 0.3, start=0.3)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """AOPD learns 21 points more than OPD greedily and 9 less where its policy is sampled; the start has 30 %."""
    plan = study(tmp_path, METHODS)
    for spec in plan.specs:
        write_finished(spec, scores(spec, "greedy"), further={"policy": scores(spec, "policy")})
    return collect(plan)


def grids(blocks: list[Block]) -> dict[str, Grid]:
    return {block.title: block for block in blocks if isinstance(block, Grid)}


def test_a_sign_that_another_profile_reverses_is_named_with_both_differences(results: Results):
    blocks = profile_blocks(results)
    (said,) = (block.sentences for block in blocks if isinstance(block, Bullets))
    assert len(said) == 2
    for sentence, figure in zip(said, ("learning", "final score"), strict=True):
        assert re.match(f"aopd − opd: .*sign .*{figure} reverses", sentence)
    assert "+21.0" in said[0]
    assert "−9.0" in said[0]
    grid = grids(blocks)["Differences by profile"]
    assert list(grid.header[:3]) == ["methods", "learning, greedy", "learning, policy"]
    assert [cell.split(" ")[0] for cell in grid.rows[0][1:3]] == ["+21.0", "−9.0"]
    assert {(0, 1), (0, 2)} <= grid.strong


def test_calibration_stands_next_to_entropy(results: Results):
    rows = {row[0]: row for row in grids(profile_blocks(results))["Calibration"].rows}
    assert [rows[name][3].split(" ")[0] for name in ("opd", "aopd")] == ["+0.0", "−30.0"]
    assert rows["opd"][2].startswith("0.300")


def test_a_method_that_ends_below_its_start_is_named_and_every_profile_shows_where_it_ends(results: Results):
    (sentence,) = describe_ends_below(results)
    # Three tasks end at 0.5 - 0.3, the last one at 0.5: 27.5 % on average.
    assert re.match(r"Under greedy .*\bopd ends below its start: at 27\.5 %, 2\.5 points", sentence)
    rows = grids(profile_blocks(results))["Final minus start, points"].rows
    # 0.71 - 0.3 for three tasks and 0.71 for one: 48.5 %; under the policy 0.11 and 0.41: 18.5 %.
    assert [cell.split(" ")[0] for cell in rows[1][1:]] == ["+18.5", "−11.5"]


def test_profiles_are_set_side_by_side_over_the_tasks_of_all(results: Results):
    """All tasks are learned alike, so without one of them the differences stay; the end of the last one counts for more."""
    for spec in results.plan.specs:
        found = json.loads((spec.path / "manifest.json").read_text())
        found["profiles"]["policy"].remove("tiny_weather")
        write_json(spec.path / "manifest.json", found)
    blocks = profile_blocks(collect(results.plan))
    note = next(block.text for block in blocks if isinstance(block, Text))
    assert note.endswith("tiny_weather.")
    # opd ends at 0.2 in two tasks and at 0.5 in the last one
    assert [cell.split(" ")[0] for cell in grids(blocks)["Differences by profile"].rows[0][1:3]] == ["+21.0", "−9.0"]
    assert grids(blocks)["Final minus start, points"].rows[0][1].startswith("+0.0")


def test_a_table_names_its_profile(results: Results):
    assert factor_grid(results, "method").title == "Method (greedy decoding)"


def test_one_profile_has_nothing_to_compare(tmp_path: Path):
    plan = study(tmp_path, METHODS)
    for spec in plan.specs:
        write_finished(spec, scores(spec, "greedy"), further={})
    assert profile_blocks(collect(plan)) == []


def test_a_study_whose_suite_and_claims_name_no_profile_says_what_was_learned(tmp_path: Path):
    plan = study(tmp_path, METHODS)
    for spec in plan.specs:
        write_finished(spec, scores(spec, "greedy"), further={})
        file = spec.path / "manifest.json"
        write_json(file, json.loads(file.read_text()) | {"profiles": {}})
    results = collect(plan)
    (sentence,) = describe_learned_and_ended(results, results.profile)
    assert re.match(r"aopd − opd: learned \+21\.0 ", sentence)


def test_seeds_that_start_from_other_weights_are_no_pairs_in_any_sentence_or_table(tmp_path: Path):
    plan = study(tmp_path, METHODS)
    for spec in plan.specs:
        write_finished(spec, scores(spec, "greedy"), further={"policy": scores(spec, "policy")})
        file = spec.path / "manifest.json"
        write_json(file, json.loads(file.read_text()) | {"weights": {"start": f"{spec.entry}{spec.seed}"}})
    results = collect(plan)
    own = [results.layout.own(results.layout.starts[0], name) for name in ("aopd", "opd")]
    learned = format_interval(results.paired(own[0], own[1], "learning_accuracy"), format_points)
    (sentence,) = describe_learned_and_ended(results, "greedy")
    assert learned in sentence
    table = grids(profile_blocks(results))["Differences by profile"]
    assert table.rows[0][1] == learned
