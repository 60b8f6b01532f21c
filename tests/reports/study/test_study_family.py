"""The page of a family of methods: each against its reference, and statements only where seeds and learning allow them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.config.run_spec import RunSpec
from harness.pipeline.sweeps.study_runs import Plan, plan_study
from harness.stats.intervals import t_interval
from reports.document.blocks import Picture
from reports.study.build_study import build_study
from reports.study.contrasts import contrasts_grid, describe_by_start, describe_contrasts, find_contrasts
from reports.study.study_frontier import describe_family, frontier_blocks, frontier_places
from reports.study.study_results import Results, collect, unit_of
from reports.study.study_sections import pulls_grid, study_warnings_grid
from tests.support.reports.drawn_figures import blank_figures
from tests.support.reports.run_factory import TAUGHT, write_finished
from tests.support.reports.study_factory import constant, fill, study

FACTORS: dict[str, Any] = {
    "family": {"title": "Family", "entries": ["none", "sft", "opd", "aopd", "fkl", "rkl", "gkd"], "seeds": [0]},
    "protection": {
        "title": "Protection",
        "entries": ["opd", "opd_replay", "opd_ewc", "aopd", "aopd_bucket"],
        "against": {"opd_replay": "opd", "opd_ewc": "opd", "aopd_bucket": "aopd"},
    },
}
LEARNED = {"none": 0.1, "sft": 0.95, "opd_ewc": 0.4, "aopd": 0.8, "aopd_bucket": 0.8, "fkl": 0.9}
LOST = {"none": 0.0, "sft": 0.6, "opd_replay": 0.05, "opd_ewc": 0.05, "aopd": 0.5}


def scores(spec: RunSpec) -> list[list[float]]:
    """Variants differ from their reference by a little more in each seed; opd_ewc learns 20 points less."""
    more = 0.01 * spec.seed * ("_" in spec.entry)
    learned = LEARNED.get(spec.entry, 0.6) + more
    return constant(spec, learned, learned - LOST.get(spec.entry, 0.3) - more)


def logged(spec: RunSpec) -> dict[str, Any]:
    if spec.entry not in ("opd", "aopd"):
        return {"warnings": ["truncation"] if (spec.entry, spec.seed) == ("opd_ewc", 2) else []}
    return TAUGHT | {"pull_down": {"opd": 0.01, "aopd": 0.04}[spec.entry] + 0.01 * spec.seed * (spec.entry == "aopd")}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    made = study(tmp_path_factory.mktemp("family"), FACTORS, claims=[])
    fill(made, scores, logged=logged)
    return made


@pytest.fixture(scope="module")
def results(plan: Plan) -> Results:
    return collect(plan)


@pytest.fixture(scope="module")
def text(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    with blank_figures():
        return build_study(plan, tmp_path_factory.mktemp("page") / "family.md").read_text(encoding="utf-8")


def test_each_entry_is_compared_with_its_own_reference(results: Results):
    grid = contrasts_grid(find_contrasts(results, results.plan.study.factors["protection"]))
    rows = {row[0]: dict(zip(grid.header, row, strict=True)) for row in grid.rows}
    assert {entry: row["minus"] for entry, row in rows.items()} == {
        "opd_replay": "opd",
        "opd_ewc": "opd",
        "aopd_bucket": "aopd",
    }
    # learned +0, +1 and +2 points; forgot 25 points less and again 0, 1 and 2 more
    assert rows["opd_replay"]["learning, points"] == "+1.0 [−1.5,\u00a0+3.5]"
    assert rows["opd_replay"]["forgetting, points"] == "−24.0 [−26.5,\u00a0−21.5]"
    assert [row["learning is"] for row in rows.values()] == ["matched", "unmatched", "matched"]
    assert (0, grid.header.index("forgetting, points")) in grid.strong
    assert (0, grid.header.index("learning, points")) not in grid.strong


def test_less_forgetting_is_stated_only_at_matched_learning(results: Results):
    reading = describe_contrasts(find_contrasts(results, results.plan.study.factors["protection"]))
    assert re.search(r"opd_replay forgot less than opd .*\(−24\.0", reading)
    assert "opd_ewc learned less than opd (−19.0" in reading
    assert "opd_ewc forgot" not in reading
    assert re.search("forgetting differs too for opd_ewc, .*not shown to match", reading)


def test_methods_with_fewer_than_three_seeds_are_not_compared(results: Results):
    """Of the family, aopd and opd have three seeds under the other factor, and still one here."""
    assert find_contrasts(results, results.plan.study.factors["family"]) == []


def test_the_page_names_nothing_that_the_study_lacks(text: str):
    plain = text.replace("\\", "")
    assert "Not drawn" not in text
    assert "claim" not in text.partition("## Learning against forgetting")[0]
    assert "## What is kept at matched learning" not in text
    assert "Protection, greedy decoding: opd_ewc" not in plain
    assert "Protection, greedy decoding: opd_replay forgot less" in plain
    assert re.search(r"of 6 .*about 0\.3 .*by chance", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert table.count("\n") > 2, f"an empty table: {table}"


def test_many_methods_are_named_next_to_their_marks(results: Results):
    (picture,) = [block for block in frontier_blocks(results) if isinstance(block, Picture)]
    axes = picture.draw().axes[0]
    assert sorted(name.get_text() for name in axes.texts) == sorted(results.methods)
    places = frontier_places(results).set_index("label")
    for label, learned, seeds in (("opd", 0.6, 3), ("fkl", 0.9, 1)):
        place: Any = places.loc[label]
        assert (place["forgot"].mean, place["learned"].mean) == pytest.approx((0.3, learned))
        assert place["learned"].seeds == seeds
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 5


def test_the_reading_names_the_best_and_what_one_seed_is_worth(results: Results):
    """At the seeds that both have, seven methods learn at least as much as opd."""
    reading = describe_family(results)
    assert reading.startswith("Learned most: sft, 95.0 %.")
    assert re.search(r"Of the 7 .*as much as opd .*\bopd_replay forgot least: −24\.0 \[−26\.5,\u00a0−21\.5\]", reading)
    assert "5 methods of 10 ran with one seed" in reading


def test_pulls_have_a_row_per_method_that_noted_them(results: Results):
    grid = pulls_grid(results)
    rows = {row[0]: dict(zip(grid.header, row, strict=True)) for row in grid.rows}
    assert list(rows) == ["opd", "aopd"]
    assert "setting" not in grid.header
    # aopd: 0.04, 0.05 and 0.06 down to 0.02 up
    assert rows["aopd"]["pull down"].startswith("0.0500 [")
    assert rows["aopd"]["down / up"].startswith("2.5000 [")
    (sentence,) = describe_by_start(results, "pull_ratio", "Down / up", lambda change: f"{change:+.4f}")
    assert sentence.startswith("Down / up, aopd minus opd: +2.0000 [")


def test_a_pull_away_from_the_first_choice_is_negative_and_lies_in_its_interval():
    found = t_interval([-0.0005, -0.0003, -0.0004]).of_unit(unit_of("pull_up"))
    assert found.low < found.mean < found.high < 0


def test_warnings_are_counted_in_stages(results: Results):
    grid = study_warnings_grid(results)
    assert (grid.header, grid.rows) == (["method", "stages trained", "truncation"], [["opd_ewc", "12", "4"]])


def test_settings_are_named_where_a_study_varies_them(tmp_path: Path):
    rates = {"title": "Rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4]}
    plan = study(tmp_path, {"rate": rates}, seeds=[0])
    fill(plan, scores, logged=logged)
    grid = pulls_grid(collect(plan))
    assert [row[:2] for row in grid.rows] == [
        ["opd", "Rate: 0.0001"],
        ["aopd", "Rate: 0.0001"],
        ["opd", "own"],
        ["aopd", "own"],
    ]


def test_nothing_is_compared_with_an_unfinished_reference(tmp_path: Path):
    made = study(tmp_path, FACTORS, claims=[])
    for spec in made.specs:
        if spec.entry != "opd":
            write_finished(spec, scores(spec))
    reading = describe_family(collect(plan_study(str(tmp_path / "trial.yaml"), (), tmp_path / "runs")))
    assert reading.startswith("Learned most: sft")
    assert "forgot least" not in reading
