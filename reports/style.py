"""One look for all figures: colours that colour-blind readers can tell apart, short names, and how figures are saved.

An adapter has one colour in all figures of a report, the well-known ones and what is named after them in all reports.
Figures are drawn without pyplot, so that nothing global changes, and saved without dates, so that the same numbers give
the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

INK = "#1b1f24"
RULE = "#8b949e"
HEAT = "cividis"
# Okabe and Ito 2008; grey is kept for the control that updates nothing.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255"]
KNOWN = {"none": "#7f7f7f", "opd": PALETTE[0], "aopd": PALETTE[1], "sft": PALETTE[2], "gkd": PALETTE[3]}
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


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style to the figures made inside the block."""
    with matplotlib.rc_context(RC):
        yield


def base(adapter: str) -> str:
    """Return the well-known adapter that an entry is named after (`opd` of `opd_replay`), else its own name."""
    first = adapter.partition("_")[0]
    return first if first in KNOWN else adapter


def colours(adapters: Iterable[str]) -> dict[str, str]:
    """Return a colour for each adapter: its base's where that is well known, else the next free one by alphabet."""
    bases = {name: base(name) for name in sorted(set(adapters))}
    free = [colour for colour in PALETTE if colour not in {KNOWN.get(name) for name in bases.values()}] or PALETTE
    others = [name for name in bases if bases[name] not in KNOWN]
    return {name: KNOWN.get(of) or free[others.index(name) % len(free)] for name, of in bases.items()}


def shades(count: int) -> list[str]:
    """Return colours from light to dark, for lines that stand in an order."""
    spread = [0.85 * (1 - number / max(1, count - 1)) for number in range(count)]
    return [to_hex(colormaps[HEAT](share)) for share in spread]


def short_names(tasks: Iterable[str]) -> dict[str, str]:
    """Return task names for axes: without the first word if all share it, and with spaces for underscores."""
    names = list(dict.fromkeys(tasks))
    heads = {name.partition("_")[0] for name in names}
    shared = len(heads) == 1 and all("_" in name for name in names)
    return {name: (name.partition("_")[2] if shared else name).replace("_", " ") for name in names}


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png on white and `stem`.svg without background, both without dates or program names."""
    save_png(figure, stem.with_suffix(".png"))
    with styled():
        figure.savefig(stem.with_suffix(".svg"), transparent=True, metadata={"Date": None, "Creator": None})


def save_png(figure: Figure, file: Path, dpi: int = 150) -> None:
    """Write a PNG on white, without date or program name."""
    with styled():
        figure.savefig(file, dpi=dpi, facecolor="white", metadata={"Software": None})


def inline_svg(file: Path, description: str) -> str:
    """Return a saved figure as an `<svg>` element for a page: in the page's text colour, ids unique by file name."""
    svg = file.read_text(encoding="utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{file.stem}-", svg).replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
