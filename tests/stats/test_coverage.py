"""A small version of docs/results/coverage.md: intervals and verdicts are right as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.simulated_studies import CurveStudy

pytestmark = pytest.mark.slow
STUDIES = 300
ERROR = 3 * (0.05 * 0.95 / STUDIES) ** 0.5


@pytest.mark.parametrize("kind", ["mixed", "seeds", "items", "none"])
def test_the_two_way_interval_covers_and_raises_few_false_alarms(kind: str):
    row = coverage.coverage_row(kind, (60, 200), 5, STUDIES, np.random.default_rng(1))
    *_, covered, false = row.shares
    assert 0.92 - ERROR <= covered <= (1 if kind == "none" else 0.97 + ERROR)
    assert false <= 0.05 + ERROR + 0.01


def test_verdicts_on_equal_methods_are_wrong_in_at_most_5_percent():
    row = coverage.verdict_row("mixed", 5, 150, np.random.default_rng(2))
    assert max(row.shares) <= 0.05 + 0.06


def test_equal_learning_tells_equal_methods_apart_in_at_most_5_percent_where_end_points_do_more_often():
    row = coverage.curve_row(CurveStudy(speeds=(1.5, 6.0)), 5, 150, np.random.default_rng(3))
    equal, ends, _ = row.shares
    assert equal <= 0.05 + 0.06
    assert ends > 0.3


def test_the_page_has_every_table():
    tables = [
        ("intervals", [coverage.coverage_row("none", (20, 40), 3, 2, np.random.default_rng(0))]),
        ("verdicts", [coverage.verdict_row("none", 3, 2, np.random.default_rng(0))]),
        ("curves", [coverage.curve_row(CurveStudy(), 3, 2, np.random.default_rng(0))]),
    ]
    page = coverage.render(tables, "# Heading", coverage.TEXTS)
    for name, (row,) in tables:
        assert coverage.TITLES[name] in page
        assert len(coverage.HEADERS[name]) == len(row.setting) + len(row.shares)
