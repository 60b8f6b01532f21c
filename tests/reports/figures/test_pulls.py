"""The figures of pulls and agreement show each run's own numbers, by method, and are refused where there are none."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from harness.errors import RunError
from reports.data.frames import Frames, load_frames
from reports.figures import style
from reports.figures.draw_pulls import draw_agreement, draw_pulls
from reports.report.sections.pulls_section import read_agreement, read_pulls
from tests.support.reports.run_factory import TAUGHT, write_run


@pytest.fixture
def frames(tmp_path: Path) -> Frames:
    write_run(tmp_path, "sft")
    write_run(tmp_path, "opd", logged=TAUGHT)
    write_run(tmp_path, "opd_replay", logged=TAUGHT | {"pull_up": 0.03})
    known = {"teacher_agreement": 0.75, "teacher_entropy": 1.25, "teacher_neginf_share": 0.125}
    write_run(tmp_path, "aopd", logged=TAUGHT | known | {"pull_down": 0.04, "top_k": 32, "overlap": 0.5})
    return load_frames([tmp_path])


def levels(axes) -> dict[str, tuple[str, float]]:
    """Return dashes and level of each labelled line."""
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): (line.get_linestyle(), float(np.mean(line.get_ydata()))) for line in lines}


def test_up_is_solid_above_and_down_dashed_below(frames: Frames):
    above, below = draw_pulls(frames.steps).axes
    assert levels(above) == {
        n: ("-", pytest.approx(up)) for n, up in (("opd", 0.02), ("aopd", 0.02), ("opd_replay", 0.03))
    }
    assert levels(below)["aopd"] == ("--", pytest.approx(0.04))
    assert [text.get_text() for text in above.texts] == ["1: arithmetic", "2: weather"]
    positions = [np.asarray(line.get_xdata()) for line in below.lines]
    assert [x[0] for x in positions if len(set(x)) == 1] == [3.5]


def test_methods_of_one_colour_are_told_apart_by_their_marks(frames: Frames):
    lines = {line.get_label(): line for line in draw_pulls(frames.steps).axes[0].lines}
    assert lines["opd"].get_color() == lines["opd_replay"].get_color() == style.KNOWN["opd"]
    assert lines["opd"].get_marker() != lines["opd_replay"].get_marker()
    assert lines["aopd"].get_marker() in (None, "None")


def test_agreement_is_in_percent_and_names_each_method_s_k(frames: Frames):
    above, below = draw_agreement(frames.steps).axes
    assert levels(above)["opd (K = 1)"] == ("-", pytest.approx(90))
    assert levels(above)["aopd (K = 32)"] == ("-", pytest.approx(50))
    masses = {(line.get_label(), line.get_linestyle()): np.asarray(line.get_ydata()).mean() for line in below.lines}
    assert masses["opd (K = 1)", "-"] == pytest.approx(80)
    assert masses["opd (K = 1)", "--"] == pytest.approx(95)


def test_the_numbers_are_stated_per_method_and_methods_without_any_are_left_out(frames: Frames):
    reading = read_pulls(frames)
    assert ": opd 0.0200 up and 0.0100 down, ratio 0.5000; aopd 0.0200 up and 0.0400 down" in reading
    assert "opd_replay 0.0300 up and 0.0100 down, ratio 0.3333." in reading
    assert "sft" not in reading
    agreement = read_agreement(frames)
    assert "aopd (K = 32) overlap 50.0 %" in agreement
    # Steps of earlier versions, here opd's, lack the teacher's own figures.
    named = agreement.partition("most probable token was the sampled one at: ")[2]
    assert re.match(r"aopd 75\.0 %, .*\b1\.250 nats .*\b1e-7 for 12\.5 %", named)
    assert "opd " not in named.replace("aopd ", "")


def test_starts_have_panels_of_their_own(tmp_path: Path):
    write_run(tmp_path, "opd", logged=TAUGHT)
    write_run(tmp_path, "opd", suite="tiny-strong", start="strong", logged=TAUGHT)
    titles = [axes.get_title(loc="left") for axes in draw_pulls(load_frames([tmp_path]).steps).axes]
    assert [title for title in titles if title] == ["tiny, default, weak", "tiny-strong, default, strong"]


def test_a_method_that_never_pulls_up_has_no_ratio(tmp_path: Path):
    write_run(tmp_path, "opd", logged=TAUGHT | {"pull_up": 0.0})
    assert read_pulls(load_frames([tmp_path])).endswith("0.0000 up and 0.0100 down, ratio –.")


def test_step_logs_without_pulls_are_refused(tmp_path: Path):
    write_run(tmp_path, "opd")
    steps = load_frames([tmp_path]).steps
    for draw in (draw_pulls, draw_agreement):
        with pytest.raises(RunError, match="No training step has recorded"):
            draw(steps)
