"""A series as a line of blocks: golden lines by hand, and what holds for any series."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.rundir.process.progress import BLOCKS, sparkline


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 16, ""),
        ([3.0], 16, "▁"),
        ([2.0, 2.0, 2.0], 16, "▁▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 2, 4, 6, 10, 10], 3, "▁▄█"),
        ([1.0, math.nan, 0.0, math.inf], 16, "█▁"),
    ],
)
def test_golden_lines(values: list[float], width: int, line: str):
    assert sparkline(values, width) == line


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 40))
def test_any_series_fits_and_shows_its_ends(values: list[float], width: int):
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BLOCKS)
    if len(values) <= width and max(values) > min(values):
        assert line[values.index(max(values))] == BLOCKS[-1]
        assert line[values.index(min(values))] == BLOCKS[0]
