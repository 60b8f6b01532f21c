"""Figures show the numbers they are given, with labelled axes, and the same bytes for the same numbers."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.errors import RunError
from reports.data.frames import Frames, load_frames
from reports.figures import curves as lines
from reports.figures import draw_scores, draw_training, style
from reports.formatting import shorten_names
from tests.support.reports.run_factory import write_run

OTHER = [[0.50, 0.10, 0.60], [0.60, 0.20, 0.50], [0.50, 0.70, 0.60]]


@pytest.fixture
def frames(tmp_path: Path) -> Frames:
    for adapter in ("opd", "aopd"):
        write_run(tmp_path, adapter, seed=0)
        write_run(tmp_path, adapter, seed=1, scores=OTHER)
    return load_frames([tmp_path])


def texts(figure: Figure, axes: int) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


def test_the_heatmap_writes_mean_and_range_into_every_cell(frames: Frames):
    figure = draw_scores.draw_retention(frames.scores)
    means = [[50, 10, 60], [70, 20, 50], [40, 80, 50]]
    assert [int(text) for text in texts(figure, 0)[::2]] == [mean for row in means for mean in row]
    assert texts(figure, 0)[7] == "60 to 80"
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "opd (2 seeds)"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["start", "after arithmetic", "after weather"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["arithmetic", "weather", "long sums (probe)"]
    assert figure.axes[-1].get_ylabel() == "score (%)"


def test_the_heatmap_frames_the_stages_own_tasks(frames: Frames):
    boxes = draw_scores.draw_retention(frames.scores).axes[1].patches
    centres = [
        (round(box.get_x() + 0.46, 6), round(box.get_y() + 0.45, 6)) for box in boxes if isinstance(box, Rectangle)
    ]
    assert centres == [(0, 1), (1, 2)]


def test_a_cell_that_is_missing_says_so(tmp_path: Path):
    write_run(tmp_path, evaluated=8)
    figure = draw_scores.draw_retention(load_frames([tmp_path]).scores)
    assert texts(figure, 0) == ["50", "10", "60", "80", "20", "50", "30", "90", "not yet"]


def test_forgetting_has_a_panel_per_task_and_a_line_per_method(frames: Frames):
    figure = draw_scores.draw_forgetting(frames.scores)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["arithmetic", "weather", "long sums (probe, never trained)"]
    assert np.asarray(figure.axes[0].lines[0].get_ydata()) == pytest.approx([50, 70, 40])
    assert [line.get_label() for line in figure.axes[0].lines] == ["opd", "aopd"]
    assert figure.axes[0].get_ylabel() == "score (%)"
    assert {axes.get_xlabel() for axes in figure.axes} == {"after stage"}


def test_a_task_that_was_trained_before_the_start_is_not_drawn_as_a_probe(tmp_path: Path):
    origin = {"trained": [{"task": "tiny_arithmetic"}]}
    tasks = {"stages": ("tiny_weather",), "probes": ("tiny_long_sums", "tiny_arithmetic")}
    write_run(tmp_path, "opd", 0, [[0.1, 0.6, 0.8], [0.9, 0.5, 0.4]], **tasks, config={"origin": origin})
    scores = load_frames([tmp_path]).scores
    titles = [axes.get_title(loc="left") for axes in draw_scores.draw_forgetting(scores).axes]
    assert titles == ["weather", "arithmetic (trained before the start)", "long sums (probe, never trained)"]
    axes = draw_scores.draw_retention(scores).axes[0]
    columns = [" ".join(tick.get_text().split()) for tick in axes.get_xticklabels()]
    assert columns == ["weather", "arithmetic (trained before)", "long sums (probe)"]
    assert np.asarray(axes.lines[0].get_xdata()) == pytest.approx(
        [1.5, 1.5]
    )  # the line that probes are to the right of


def test_learning_is_the_diagonal(frames: Frames):
    axes = draw_scores.draw_learning(frames.scores).axes[0]
    after, before = axes.lines[0], axes.lines[1]
    assert np.asarray(after.get_ydata()) == pytest.approx([70, 80])
    assert np.asarray(before.get_ydata()) == pytest.approx([50, 20])
    assert "%" in axes.get_ylabel()


def test_entropy_names_the_stages_and_divides_them(frames: Frames):
    axes = draw_training.draw_entropy(frames.steps).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1: arithmetic", "2: weather"]
    assert "nats" in axes.get_ylabel()
    assert "step" in axes.get_xlabel()
    positions = [np.asarray(line.get_xdata()) for line in axes.lines]
    assert [x[0] for x in positions if len(set(x)) == 1] == [3.5]


def test_smoothing_stays_within_a_stage(frames: Frames):
    smooth = lines.smooth(frames.steps, "entropy").set_index(["label", "global_step"])["mean"]
    # entropies 1, .9, .8, .7 in each stage; the window of 5 holds 3, 4, 4, 3 of them
    assert smooth.loc["opd"].tolist() == pytest.approx([0.9, 0.85, 0.85, 0.8] * 2)


def test_without_any_entropy_the_figure_is_refused(tmp_path: Path):
    write_run(tmp_path, "none")
    with pytest.raises(RunError, match="No training step has recorded"):
        draw_training.draw_entropy(load_frames([tmp_path]).steps)


def test_an_adapter_keeps_its_colour_whatever_else_is_drawn():
    alone, together = style.colours(["aopd"]), style.colours(["aopd", "opd", "mine", "yours", "none"])
    assert alone["aopd"] == together["aopd"]
    assert len(set(together.values())) == 5


def test_an_entry_named_after_a_known_adapter_shares_its_colour_with_other_dashes(tmp_path: Path):
    for adapter in ("opd", "opd_replay", "mine_replay"):
        write_run(tmp_path, adapter)
    colours = style.colours(["opd", "opd_replay", "mine_replay"])
    assert colours["opd_replay"] == colours["opd"] == style.KNOWN["opd"]
    assert colours["mine_replay"] != colours["opd"]
    looks = lines.looks_of(load_frames([tmp_path]).steps)
    assert looks["opd"]["linestyle"] != looks["opd_replay"]["linestyle"]


def test_orders_are_told_apart_and_stages_numbered(tmp_path: Path):
    write_run(tmp_path)
    write_run(tmp_path, order="reversed", stages=("tiny_weather", "tiny_arithmetic"))
    frames = load_frames([tmp_path])
    axes = draw_scores.draw_forgetting(frames.scores).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["start", "1", "2"]
    assert len({line.get_linestyle() for line in axes.lines}) == 2
    assert len(draw_training.draw_entropy(frames.steps).axes) == 2


def test_saved_figures_are_the_same_bytes_each_time(frames: Frames, tmp_path: Path):
    for name in ("a", "b"):
        style.save_figure(draw_scores.draw_learning(frames.scores), tmp_path / name)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["tiny_long_sums", "tiny_weather"], ["long sums", "weather"]),
        (["gsm8k", "toolalpaca_weather"], ["gsm8k", "toolalpaca weather"]),
        (["gsm8k"], ["gsm8k"]),
        (["math", "mathematics"], ["math", "mathematics"]),
    ],
)
def test_shortened_names_drop_only_a_whole_shared_word(tasks: list[str], expected: list[str]):
    assert list(shorten_names(tasks).values()) == expected


def test_a_single_task_still_has_a_visible_cell(tmp_path: Path):
    write_run(tmp_path, scores=[[0.2], [0.1]], stages=("gsm8k",), probes=())
    mesh = draw_scores.draw_retention(load_frames([tmp_path]).scores).axes[0].collections[0]
    corners = mesh.get_paths()[0].vertices
    assert np.ptp(np.asarray(corners), axis=0).tolist() == [1.0, 1.0]
