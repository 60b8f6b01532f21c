"""Figures have one style: colours that colour-blind readers tell apart, one per adapter everywhere, axes with names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from benchmarks.report_runs import STAGES, Scale, write_runs
from reports.data.frames import Frames, load_frames
from reports.figures import style
from reports.figures.draw_cost import PHASE_COLOURS
from tests.support.reports.drawn_figures import drawn

MANY = [*("none", "sft", "opd", "aopd", "gkd", "grpo", "eopd", "vopd", "mine"), *(f"opd_{n}" for n in range(5))]
# Machado, Oliveira and Fernandes 2009: what deuteranopes and protanopes see, on linear RGB.
SEEN = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
# Björn Ottosson 2020: linear RGB to cones, their cube roots to OKLab.
CONES = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
CONES += [[0.0883024619, 0.2817188376, 0.6299787005]]
OKLAB = [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099]]
OKLAB += [[0.0259040371, 0.7827717662, -0.808675766]]
FEW = {"sft", "opd", "aopd", "gkd", "grpo"}


@pytest.fixture(scope="module", params=[sorted(FEW), MANY], ids=["few", "many"])
def report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Frames, dict[str, Figure]]:
    """A report's frames and figures: of as many methods as there are colours, and of more."""
    scale = Scale(request.param, 2 if len(request.param) < 9 else 1, STAGES[:2], (), 9, 6, 3, 3, 2)
    frames = load_frames([write_runs(tmp_path_factory.mktemp("runs"), scale)])
    return frames, drawn(frames)


def test_every_figure_names_its_axes(report: tuple[Frames, dict[str, Figure]]):
    for name, figure in report[1].items():
        for axes in (axes for axes in figure.axes if axes.axison):
            if numbered(axes.xaxis):
                assert axes.get_xlabel() or figure.get_supxlabel(), name
            if numbered(axes.yaxis):
                assert axes.get_ylabel() or figure.get_supylabel(), name


def numbered(axis: Axis) -> bool:
    """Whether an axis shows numbers: names of tasks, stages and methods say themselves what they are."""
    shown = [text.get_text() for text in axis.get_ticklabels() if text.get_visible()]
    return any(text.replace(".", "").replace("−", "").isdigit() for text in shown)


def test_an_adapter_has_its_colour_in_every_figure(report: tuple[Frames, dict[str, Figure]]):
    frames, figures = report
    expected = {
        label: style.colours([r.adapter for r, _ in frames.labelled])[run.adapter] for run, label in frames.labelled
    }
    for name, figure in figures.items():
        for label, colour in named_colours(figure, set(expected)):
            assert to_hex(colour) == to_hex(expected[label]), (name, label)
    shown = {name for name, figure in figures.items() if dict(named_colours(figure, set(expected)))}
    lines = {"frontier", "drift", "entropy", "pulls", "agreement", "advantage"}
    assert shown >= lines | ({"forgetting", "learning"} if len(expected) <= style.MANY else set())


def named_colours(figure: Figure, labels: set[str]) -> Iterator[tuple[str, str]]:
    """Yield a label with each of its colours: in legends, of its written name, and in panels with its name as title."""
    for legend in figure.legends:
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=False):
            if (label := text.get_text().partition(" (K")[0]) in labels:
                yield label, str(line.get_color())
    for axes in figure.axes:
        yield from ((text.get_text(), str(text.get_color())) for text in axes.texts if text.get_text() in labels)
        if (title := axes.get_title(loc="left")) in labels:
            colours: list[Any] = [line.get_color() for line in axes.lines]
            colours += [c for found in axes.collections if found.get_array() is None for c in found.get_facecolor()]
            yield from ((title, to_hex(c)) for c in colours if to_hex(c) != to_hex(style.RULE))


@pytest.mark.parametrize("sight", SEEN)
@pytest.mark.parametrize(
    ("colours", "least"),
    [
        ([*style.PALETTE, style.KNOWN["none"]], 0.07),
        (list(style.OUTCOME_COLOURS.values()), 0.1),
        (list(PHASE_COLOURS.values()), 0.1),
    ],
    ids=["methods", "outcomes", "phases"],
)
def test_colours_stay_apart_for_colour_blind_readers(colours: list[str], least: float, sight: str):
    seen = [in_oklab(np.clip(np.array(SEEN[sight]) @ linear(colour), 0, 1)) for colour in colours]
    assert min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2)) > least


def linear(colour: str) -> np.ndarray:
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def in_oklab(rgb: np.ndarray) -> np.ndarray:
    return np.array(OKLAB) @ np.cbrt(np.array(CONES) @ rgb)


def test_every_figure_is_saved_as_raster_and_vector(report: tuple[Frames, dict[str, Figure]], tmp_path: Path):
    for name, figure in list(report[1].items())[:2]:
        style.save_figure(figure, tmp_path / name)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / f"{name}.svg").read_bytes()


def test_no_figure_is_larger_than_a_reader_can_scroll(report: tuple[Frames, dict[str, Figure]]):
    for name, figure in report[1].items():
        width, height = figure.get_size_inches()
        assert width <= 16, name
        assert height <= 60, name
        assert all(len(legend.get_texts()) <= style.MANY + 2 for legend in figure.legends), name
