"""Names next to marks cover neither marks nor one another, stay in the axes, and have the same places each time."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from reports.figures.label_placement import Box, Name, write_names

CROWD = [Name(f"method_{i}", 10 + 0.8 * (i % 5), 50 + 1.5 * (i // 5), "black") for i in range(20)]
CORNERS = [Name("a_long_name_at_a_corner", x, y, "black") for x in (0, 20) for y in (40, 60)]


def written(names: list[Name]) -> tuple[Axes, list[Annotation]]:
    axes = Figure(figsize=(9, 6)).add_axes((0.1, 0.1, 0.85, 0.85))
    axes.set(xlim=(0, 20), ylim=(40, 60))
    write_names(axes, names)
    return axes, [text for text in axes.texts if isinstance(text, Annotation)]


def boxes(axes: Axes, texts: list[Annotation]) -> list[Bbox]:
    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]  # an annotation's own has its line


def test_areas_are_worked_by_hand():
    assert Box(0, 0, 2, 1).overlap(Box(3, 1, 2, 1)) == pytest.approx(1 * 1)
    assert Box(0, 0, 2, 1).overlap(Box(4, 0, 2, 1)) == 0


def test_twenty_crowded_names_cover_neither_one_another_nor_marks():
    axes, texts = written(CROWD)
    drawn = boxes(axes, texts)
    assert len(drawn) == 20
    assert not [pair for pair in combinations(drawn, 2) if pair[0].overlaps(pair[1])]
    marks = axes.transData.transform([(name.x, name.y) for name in CROWD])
    assert not [(x, y) for x, y in marks for box in drawn if box.contains(x, y)]


def test_names_at_the_corners_stay_in_the_axes():
    axes, texts = written(CORNERS)
    inside = axes.get_window_extent()
    for box in boxes(axes, texts):
        assert np.all(np.asarray(box.min) >= np.asarray(inside.min) - 1)
        assert np.all(np.asarray(box.max) <= np.asarray(inside.max) + 1)


def test_a_name_that_had_to_go_far_has_a_leading_line():
    _, texts = written(CROWD)
    up: dict[bool, list[float]] = {True: [], False: []}
    for text in texts:
        up[text.arrow_patch is not None].append(abs(text.xyann[1]))
    assert up[True]
    assert max(up[True]) > max(up[False])
    _, (alone,) = written(CROWD[:1])
    assert alone.arrow_patch is None


def test_the_same_marks_give_the_same_places():
    assert [text.xyann for text in written(CROWD)[1]] == [text.xyann for text in written(CROWD)[1]]
