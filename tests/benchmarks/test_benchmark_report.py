"""A report over thirty runs stays small, and its benchmark says what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import Built, measure_build, text
from benchmarks.report_runs import STAGES, Scale, write_runs

MB = 1_000_000


def test_the_benchmarks_runs_are_as_large_as_they_say(tmp_path: Path):
    assert (Scale().runs, Scale().samples) == (30, 105_000)
    scale = Scale(adapters=("opd",), seeds=2, stages=STAGES[:1], items=5, steps=2)
    runs = write_runs(tmp_path, scale)
    assert len(list(runs.rglob("manifest.json"))) == scale.runs == 2
    assert len(list(runs.rglob("eval/*/samples.parquet"))) * scale.items == scale.samples == 40


def test_the_section_shows_medians_and_what_is_wanted():
    found = [Built(seconds, seconds / 2, 3 * MB, MB, 9 * MB) for seconds in (20.0, 31.0, 25.0)]
    section = text(found, Scale())
    assert "| seconds to build | 25.0 (20.0 to 31.0) | under 60 |" in section
    assert "| processor seconds | 12.5 (10.0 to 15.5) |" in section
    assert "| MB of report.html | 3.0 | under 20 |" in section
    assert "30 runs (5 methods, 6 seeds)" in section
    assert "105,000 graded answers" in section


@pytest.mark.slow
def test_a_report_over_thirty_methods_stays_under_twenty_megabytes(tmp_path: Path):
    scale = Scale(adapters=[f"opd_{n}" for n in range(30)], seeds=1)
    assert scale.samples >= 100_000
    sizes = measure_build(write_runs(tmp_path, scale), tmp_path / "report")
    assert sizes.page < 20 * MB
    assert 0 < sizes.largest_item_page < 20 * MB
