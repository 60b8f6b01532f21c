"""One style for all figures: colours that colour-blind readers can tell apart, and how figures are saved.

An entry has one colour in all figures of a report. An entry of a well-known kind, or named after one, has it in all reports.
Figures are drawn without pyplot, so that no global state changes, and saved without dates, so that the same numbers give the
same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.rundir.reader import RunDir
from harness.rundir.schema import CONTROL

INK = "#1b1f24"
RULE = "#8b949e"
HALO = "#fefefe"  # the outline of names; on a page it becomes the page's background
HEAT = "cividis"
CHANGE = "PuOr"
# Okabe and Ito 2008; grey is kept for the control that updates nothing.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255"]
KNOWN = {CONTROL: "#6c6c6c", "opd": PALETTE[0], "aopd": PALETTE[1], "sft": PALETTE[2], "gkd": PALETTE[3]}
OUTCOME_COLOURS = {"correct": "#009E73", "wrong": "#D55E00", "unparsed": "#882255", "truncated": "#E69F00"}
DARK = {"#0072b2": "#58b0e8", "#882255": "#d67ba6", "#d55e00": "#f08438", "#009e73": "#2bc79b", "#6c6c6c": "#a8a8a8"}
PHONE = 4.6  # inches: the width of figures for a phone, which shows them at about this size
ABOVE = "../"  # from a figure's folder to its page's
MANY = 7  # labels that one set of axes holds; more get panels of their own
DASHES = ["-", "--", ":", "-."]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.titlecolor": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "continual-harness",
}

_SHARED: ContextVar[dict[str, tuple[str, str]]] = ContextVar("entry and kind by label", default={})  # noqa: B039


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style to the figures made inside the block."""
    with matplotlib.rc_context(RC):
        yield


@contextmanager
def shared(labelled: Iterable[tuple[RunDir, str]]) -> Iterator[None]:
    """Give each label of a report's runs the same look in all figures drawn inside the block."""
    token = _SHARED.set({label: (run.adapter, run.manifest.kind) for run, label in labelled})
    try:
        yield
    finally:
        _SHARED.reset(token)


def shared_adapters() -> dict[str, str]:
    """Return the adapter entries of the report's labels, none outside of `shared`."""
    return {label: entry for label, (entry, _) in _SHARED.get().items()}


def base(adapter: str) -> str:
    """Return an entry's kind if it is well known, else the well-known kind that it is named after, else its own name.

    `opd_replay` is named after `opd`. Outside of `shared` an entry's kind is its name. Only an entry whose kind is the control
    gets the control's colour.
    """
    kind = dict(_SHARED.get().values()).get(adapter, adapter)
    first = adapter.partition("_")[0]
    return kind if kind in KNOWN else first if first in KNOWN and first != CONTROL else adapter


def colours(adapters: Iterable[str]) -> dict[str, str]:
    """Return a colour for each adapter: its base's where that is well known, else the next free one in alphabetical order.

    Inside `shared` all of the report's adapters are counted, so that a figure without some of them has the same colours.
    """
    bases = {name: base(name) for name in sorted({*adapters, *shared_adapters().values()})}
    free = [colour for colour in PALETTE if colour not in {KNOWN.get(name) for name in bases.values()}] or PALETTE
    others = [name for name in bases if bases[name] not in KNOWN]
    return {name: KNOWN.get(of) or free[others.index(name) % len(free)] for name, of in bases.items()}


def reference(labels: Sequence[str]) -> str:
    """Return the label that the others are drawn against: the first whose kind is OPD, or else the first."""
    everywhere = _SHARED.get()
    return next((label for label in labels if everywhere.get(label, ("", ""))[1] == "opd"), labels[0])


def ink_on(share: float, colours: str = HEAT) -> str:
    """Return black or white, whichever has the higher contrast (WCAG 2) on the colour map's colour at `share` (0 to 1)."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colormaps[colours](share)[:3]
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def colour_bar(figure: Figure, axes: Sequence[Axes], label: str) -> None:
    """Add the panels' colour scale at the upper right, with the same size for any number of rows."""
    height = figure.get_figheight()
    bar = {"shrink": min(0.8, 3.0 / height), "anchor": (0.0, 1.0), "aspect": 25, "pad": 0.01}
    figure.colorbar(axes[0].collections[0], ax=list(axes), label=label, **bar)  # pyright: ignore[reportArgumentType]


def frame(column: float, row: float) -> Rectangle:
    """Return the frame that marks a stage's own task, around the matrix cell with its centre at (column, row)."""
    return Rectangle((column - 0.46, row - 0.45), 0.92, 0.9, fill=False, edgecolor=PALETTE[1], linewidth=2)


def linked_cell(column: float, row: float, address: str) -> Rectangle:
    """Return an invisible rectangle over the matrix cell with its centre at (column, row), linked to `address`."""
    return Rectangle((column - 0.5, row - 0.5), 1, 1, alpha=0.004, linewidth=0, zorder=10, url=f"{ABOVE}{address}")


def shades(count: int) -> list[str]:
    """Return colours from light to dark, for lines that have an order."""
    spread = [0.85 * (1 - number / max(1, count - 1)) for number in range(count)]
    return [to_hex(colormaps[HEAT](share)) for share in spread]


def save_figure(figure: Figure, stem: Path, dpi: int = 150) -> None:
    """Write `stem`.png on white and `stem`.svg without background, both without dates or program names.

    The layout is computed once for both.
    """
    if (layout := figure.get_layout_engine()) is not None:
        with styled():
            layout.execute(figure)
        figure.set_layout_engine("none")
    with styled():
        figure.savefig(stem.with_suffix(".png"), dpi=dpi, facecolor="white", metadata={"Software": None})
        figure.savefig(stem.with_suffix(".svg"), transparent=True, metadata={"Date": None, "Creator": None})


def phone_svg(draw: Callable[[], Figure], name: str, description: str) -> str:
    """Return the figure that `draw` makes for a narrow screen as an `<svg>` element; the report keeps no file of it."""
    figure = draw()
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}-narrow.svg"
        with styled():
            figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
        return inline_svg(file, description)


def inline_svg(file: Path, description: str) -> str:
    """Return a saved figure as an `<svg>` element for a page, with ids unique by file name and coordinates to 0.01 points.

    Text takes the page's text colour, halos its background, and colours too dark for a dark page become CSS variables.
    """
    svg = file.read_text(encoding="utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{file.stem}-", svg).replace(INK, "currentColor")
    svg = svg.replace(HALO, "var(--paper)")
    svg = re.sub("|".join(DARK), lambda colour: f"var(--c{colour.group()[1:]})", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), svg)
    # A link in a figure is for the pointer: the page has the same links as text.
    svg = svg.replace(' target="_blank"', "").replace(f'xlink:href="{ABOVE}', 'tabindex="-1" xlink:href="')
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


def page_colours() -> dict[str, tuple[str, str]]:
    """Return for each CSS variable of figures its value on a light page and on a dark page."""
    return {f"--c{light[1:]}": (light, dark) for light, dark in DARK.items()}
