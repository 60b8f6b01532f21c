"""Write names next to their marks, because a legend of twenty entries is unreadable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from reports.figures import style

SIZE = 8.5
RADII = (7, 12, 19, 28, 39, 52, 68)
ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)
MARK = 5.0  # half the width that is kept free around a mark
ARM = 60.0  # how far bars through a mark are kept free
CLOSE = 14  # up to this radius no line joins name and mark


@dataclass(frozen=True)
class Name:
    """A text for the mark at (x, y) in data coordinates."""

    text: str
    x: float
    y: float
    colour: str


@dataclass(frozen=True)
class Box:
    """A rectangle in points: centre and half sizes."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Return the area that two boxes share."""
        wide = self.width + other.width - abs(self.x - other.x)
        high = self.height + other.height - abs(self.y - other.y)
        return max(0.0, wide) * max(0.0, high)


def write_names(axes: Axes, names: Sequence[Name], *, crosses: bool = False) -> None:
    """Write each name where it covers neither marks nor names; the axes' position and limits must be final.

    With `crosses`, a horizontal and a vertical bar through each mark are kept free too. The most crowded mark chooses first.
    The same marks give the same places.
    """
    figure = axes.get_figure()
    assert figure is not None
    inch = 72 / figure.dpi
    places = inch * axes.transData.transform([(name.x, name.y) for name in names])
    marks = [Box(float(x), float(y), MARK, MARK) for x, y in places]
    corners: list[list[float]] = (inch * axes.get_window_extent().get_points()).tolist()
    taken = list(marks)
    if crosses:
        taken += [Box(mark.x, mark.y, *half) for mark in marks for half in ((ARM, 1.0), (1.0, ARM))]
    for number in sorted(range(len(names)), key=lambda i: -sum(_near(marks[i], other) for other in marks)):
        radius, place = min(_places(names[number].text, marks[number]), key=lambda found: _cost(found, taken, corners))
        taken.append(place)
        _write(axes, names[number], (place.x - marks[number].x, place.y - marks[number].y), lead=radius > CLOSE)


def _places(text: str, mark: Box) -> Iterator[tuple[int, Box]]:
    """Yield places around a mark, the closest first."""
    width = TextPath((0, 0), text, size=SIZE).get_extents().width / 2 + 1
    height = SIZE / 2 + 0.5
    for radius, angle in product(RADII, ANGLES):
        across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        yield radius, Box(mark.x + across * (radius + width), mark.y + up * (radius + height), width, height)


def _cost(found: tuple[int, Box], taken: Sequence[Box], corners: Sequence[Sequence[float]]) -> float:
    """Return the cost of a place: covered area and parts outside of the axes cost far more than distance."""
    radius, place = found
    (left, bottom), (right, top) = corners
    outside = max(0, left - place.x + place.width, place.x + place.width - right)
    outside += max(0, bottom - place.y + place.height, place.y + place.height - top)
    return radius + 10 * sum(place.overlap(other) for other in taken) + 1000 * outside


def _near(one: Box, other: Box) -> bool:
    return math.hypot(one.x - other.x, one.y - other.y) < 60


def _write(axes: Axes, name: Name, offset: tuple[float, float], *, lead: bool) -> None:
    line = {"arrowstyle": "-", "color": style.RULE, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3} if lead else None
    text = axes.annotate(
        name.text,
        (name.x, name.y),
        offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=SIZE,
        color=name.colour,
        arrowprops=line,
        zorder=5,
    )
    text.set_path_effects([withStroke(linewidth=2.5, foreground=style.HALO)])
