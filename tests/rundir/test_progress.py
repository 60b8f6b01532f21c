"""A series as a line of blocks: golden lines by hand, and what holds for any series."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.rundir.process.progress import BLOCKS, Counter, Display, sparkline


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


def test_without_a_terminal_an_activity_prints_a_line_a_minute_with_step_loss_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
):
    now = [0.0]
    monkeypatch.setattr("harness.rundir.process.progress.time.monotonic", lambda: now[0])
    text = io.StringIO()
    with Display(Console(file=text, width=80)) as display:
        counter = Counter(display, "tiny opd seed 0", "stage 1 tiny_arithmetic", 40)
        for step in range(1, 31):
            now[0] = 6.0 * step
            counter.reach(step, {"loss": 0.5, "entropy": 0.25})
    lines = [line for line in text.getvalue().splitlines() if "opd seed 0:" in line]
    assert [line[9:] for line in lines] == [
        "tiny opd seed 0: stage 1 tiny_arithmetic, 0/40",
        "tiny opd seed 0: stage 1 tiny_arithmetic, 10/40, loss 0.5, entropy 0.25, about 0:03:00 left",
        "tiny opd seed 0: stage 1 tiny_arithmetic, 20/40, loss 0.5, entropy 0.25, about 0:02:00 left",
        "tiny opd seed 0: stage 1 tiny_arithmetic, 30/40, loss 0.5, entropy 0.25, about 0:01:00 left",
    ]
