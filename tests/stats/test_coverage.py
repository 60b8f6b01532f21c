"""A small version of docs/results/coverage.md: intervals and verdicts are right as often as they promise.

Studies have a fixed seed, so a share of them is one number: it is within three standard errors of what is promised, and it is
the number that it was, so that a small change of an interval shows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.simulation import coverage
from benchmarks.simulation.coverage_page import HEADERS, TITLES, Row, render_table, replace_section, rows_of, section_of
from benchmarks.simulation.reported_studies import CASES
from benchmarks.simulation.simulated_studies import SPREADS, CurveStudy

STUDIES = 400
ERROR = 3 * (0.05 * 0.95 / STUDIES) ** 0.5
SAME = 0.005  # two studies of 400: another version of numpy or scipy may round one differently
EQUAL, BETTER = CurveStudy(speeds=(1.5, 6.0)), CurveStudy(speeds=(1.5, 3.0), effect=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "covers", "wrong"),
    [("mixed", 0.9700, 0.0525), ("seeds", 0.9525, 0.0400), ("items", 0.9650, 0.0225), ("none", 0.9700, 0.0575)],
)
def test_the_two_way_interval_covers_and_raises_few_false_alarms(kind: str, covers: float, wrong: float):
    """With the tiny suite's own sizes, 200 items that are all independent."""
    row = coverage.coverage_row(kind, (200, 200), 5, STUDIES, np.random.default_rng(1))
    *_, covered, false = row.shares
    assert (covered, false) == pytest.approx((covers, wrong), abs=SAME)
    assert 0.95 - ERROR <= covered <= 0.97 + ERROR
    assert false <= 0.05 + ERROR


@pytest.mark.slow
def test_verdicts_on_equal_methods_are_wrong_in_at_most_5_percent():
    row = coverage.verdict_row("mixed", 5, STUDIES, np.random.default_rng(2))
    assert row.shares == pytest.approx((0.035, 0.04, 0.0325), abs=SAME)
    assert max(row.shares) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "wrong", "ends"), [(3, 0.05, 0.1675), (5, 0.0475, 0.4625), (10, 0.05, 0.845)])
def test_equal_learning_tells_equal_methods_apart_in_at_most_5_percent_where_end_points_do_more_often(
    seeds: int, wrong: float, ends: float
):
    differ, of_those_compared, at_the_end, _ = coverage.curve_row(
        EQUAL, seeds, STUDIES, np.random.default_rng(3)
    ).shares
    assert (differ, at_the_end) == pytest.approx((wrong, ends), abs=SAME)
    assert differ <= of_those_compared <= 0.05 + ERROR


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "power"), [(3, 0.1625), (5, 0.3275), (10, 0.7075)])
def test_equal_learning_finds_5_points_with_the_stated_power(seeds: int, power: float):
    """Decision 21 states 15, 34 and 67 % at 3, 5 and 10 seeds."""
    share = coverage.curve_row(BETTER, seeds, STUDIES, np.random.default_rng(4)).shares[0]
    assert share == pytest.approx(power, abs=SAME)
    stated = {3: 0.15, 5: 0.34, 10: 0.67}[seeds]
    assert abs(share - stated) <= 3 * math.sqrt(2 * stated * (1 - stated) / STUDIES)


@pytest.mark.slow
def test_the_mean_over_stages_at_equal_learning_tells_equal_methods_apart_in_at_most_5_percent():
    differ, compared, _ = coverage.stages_row(EQUAL, 5, STUDIES, np.random.default_rng(5)).shares
    assert differ == pytest.approx(0.0475, abs=SAME)
    assert compared <= 0.05 + ERROR


def test_the_page_has_every_table_and_keeps_the_others_where_one_is_measured():
    generator = np.random.default_rng(0)
    tables = {
        "intervals": coverage.coverage_row("none", (20, 40), 3, 2, generator),
        "verdicts": coverage.verdict_row("none", 3, 2, generator),
        "reported": coverage.reported_row("best of three rates", "none", (20, 40), 2, generator),
        "curves": coverage.curve_row(CurveStudy(), 3, 2, generator),
        "stages": coverage.stages_row(CurveStudy(), 3, 2, generator),
    }
    page = "# Heading"
    for name, row in tables.items():
        page = replace_section(page, name, render_table(name, [row]))
        assert len(HEADERS[name]) == len(row.setting) + len(row.shares)
    new = Row(("items", "9", "20 × 2"), (0.1, 0.2, 0.3, math.nan))
    changed = replace_section(page, "intervals", render_table("intervals", [new]))
    assert rows_of(changed, "intervals") == [["items", "9", "20 × 2", "0.100", "0.200", "0.300", "–"]]
    assert [section_of(changed, name) == section_of(page, name) for name in tables] == [False, True, True, True, True]
    assert TITLES.keys() == HEADERS.keys()


def test_every_case_simulates_a_study():
    for case in CASES.values():
        covers, wrong = case(np.random.default_rng(0), 3, (20, 40), SPREADS["mixed"])
        for share in (covers, wrong):
            assert share in (True, False) or math.isnan(share)
