"""The figures show the numbers that plain pandas computes from the run directories."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.report_runs import STAGES, Scale, write_runs
from reports.data.frames import load_frames
from tests.reports.report.by_hand import Runs, figure_by_seed, read_runs
from tests.reports.report.by_hand_pairs import drops
from tests.reports.report.by_hand_tables import shares
from tests.support.reports.drawn_figures import drawn

Report = tuple[Runs, dict[str, Figure]]
ADAPTERS = ("opd", "aopd", "gkd")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Three methods, two seeds, two stages: their files and their figures."""
    root = write_runs(tmp_path_factory.mktemp("runs"), Scale(ADAPTERS, 2, STAGES[:2], ("probe",), 29, 7, 3, 3, 3))
    return read_runs(root), drawn(load_frames([root]))


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").partition(" (")[0] == title)


def test_the_frontiers_marks_and_bars(report: Report):
    runs, figures = report
    places = [np.array([line.get_xdata()[0], line.get_ydata()[0]]) for line in figures["frontier"].axes[0].lines]  # pyright: ignore
    for label in runs.labels:
        forgot, learned = (100 * figure_by_seed(runs, label, f) for f in ("forgetting_chaudhry", "learning_accuracy"))
        assert any(np.allclose(place, [forgot.mean(), learned.mean()]) for place in places), label
    dots = np.asarray(figures["frontier"].axes[0].collections[0].get_offsets())
    found = [runs.figures(m) for m in runs.manifests]
    expected = [[100 * f["forgetting_chaudhry"], 100 * f["learning_accuracy"]] for f in found]
    assert np.allclose(sorted(dots.tolist()), sorted(expected))


def test_the_retention_matrix(report: Report):
    runs, figures = report
    for label in runs.labels:
        mesh: Any = panel(figures["retention"], label).collections[0]
        found = [
            [np.mean([100 * runs.score(m, i, j) for m in runs.of(label)]) for j in runs.of(label)[0]["tasks"]]
            for i in range(3)
        ]
        assert np.allclose(mesh.get_array(), found)


def test_flips_and_what_forgetting_is_made_of(report: Report):
    runs, figures = report
    tasks = runs.of("opd")[0]["tasks"]
    for label in runs.labels:
        texts = [text.get_text() for text in panel(figures["flips"], label).texts]
        found = [shares(runs, label, task, i, i + 1) for task in tasks for i in (0, 1)]
        assert sorted(texts) == sorted(f"−{100 * f['lost']:.0f} +{100 * f['gained']:.0f}" for f in found)
    widths = [bar.get_width() for bar in figures["decomposition"].axes[0].patches if isinstance(bar, Rectangle)]
    own = [shares(runs, label, tasks[0], 1, 2) for label in runs.labels]
    names = [("lost_wrong", -100), ("lost_unparsed", -100), ("lost_truncated", -100), ("gained", 100)]
    assert np.allclose(widths, [sign * f[name] for name, sign in names for f in own])


def test_entropy_is_a_rolling_mean_within_stages(report: Report):
    runs, figures = report
    for line in figures["entropy"].axes[0].lines[: len(runs.labels)]:
        own = runs.steps[runs.steps["label"] == line.get_label()].sort_values("global_step")
        smooth = own.groupby(["seed", "stage"], group_keys=False)["entropy"].apply(
            lambda values: pd.Series(
                [values.iloc[max(0, i - 2) : i + 3].mean() for i in range(len(values))], values.index
            )
        )
        expected = own.assign(entropy=smooth).groupby("global_step")["entropy"].mean()
        assert np.allclose(np.asarray(line.get_ydata(), dtype=float), expected)


def test_the_distance_to_the_start_against_forgetting(report: Report):
    runs, figures = report
    rows = drops(runs)
    for line in figures["drift"].axes[0].lines:
        own = rows[rows["label"] == line.get_label()]
        found = np.array([line.get_xdata(), line.get_ydata()], dtype=float).T
        assert np.allclose(
            sorted(found.tolist()), sorted(map(list, zip(own["kl_to_start"], 100 * own["forgot"], strict=True)))
        )


def test_seconds_by_phase(report: Report):
    runs, figures = report
    widths = [bar.get_width() for bar in figures["cost"].axes[0].patches if isinstance(bar, Rectangle)]
    found = {phase: [] for phase in ("generate", "teacher", "student", "step")}
    for label in runs.labels:
        steps = runs.steps[runs.steps["label"] == label]
        for phase, each in found.items():
            each.append(sum(spent[phase] for spent in steps["seconds"]) / len(runs.of(label)))
    rest = np.array(found["step"]) - sum(np.array(found[phase]) for phase in ("generate", "teacher", "student"))
    assert np.allclose(widths[:9], [*found["generate"], *found["teacher"], *found["student"]])
    assert np.allclose(widths[9:12], rest)


def test_learning_is_before_and_after_the_own_stage(report: Report):
    runs, figures = report
    lines = figures["learning"].axes[0].lines
    for number, label in enumerate(runs.labels):
        for offset, line in ((0, lines[2 * number]), (1, lines[2 * number + 1])):
            own: dict[str, int] = runs.of(label)[0]["own"]
            means = [
                np.mean([100 * runs.score(m, s - offset, task) for m in runs.of(label)]) for task, s in own.items()
            ]
            assert np.allclose(np.asarray(line.get_ydata(), dtype=float), means), (label, offset)
