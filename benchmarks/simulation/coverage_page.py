"""The page of simulated coverage: its tables with titles and explanations, written, read and replaced one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SEEDS = (3, 5, 10)
INTERVALS = ("over seeds", "over items", "two-way")
OF_CURVES = ["path", "speeds", "true difference", "sd of seeds", "seeds"]
HEADERS = {
    "intervals": [
        "variance",
        "seeds",
        "clusters × items",
        *(f"{name}: covers" for name in INTERVALS),
        "two-way: false alarm",
    ],
    "verdicts": ["variance", "seeds", "judged, one claim", "any of four, Holm", "matched, 5 points apart"],
    "reported": ["what", "variance", "clusters × items"]
    + [f"{share}, {n} seeds" for share in ("covers", "wrong") for n in SEEDS],
    "curves": [*OF_CURVES, "equal learning", "of those compared", "end points", "not comparable"],
    "stages": [*OF_CURVES, "equal learning, mean over stages", "of those compared", "not comparable"],
    "again": ["what", "variance", "seeds", "clusters × items", "above", "with new studies"],
}
TITLES = {
    "intervals": "Intervals: another seed and other items",
    "verdicts": "Verdicts: how often they are wrong where nothing is to be found",
    "reported": "Everything else that reports print",
    "curves": "Equal learning: how often two methods are found to differ",
    "stages": "Equal learning, mean over stages",
    "again": "Rows above 5.5 %, simulated again",
}


TEXTS = {
    "intervals": (
        "Share of 95 % intervals that cover the true difference of two methods, for another seed and other items; 0.95 is "
        "right. The last column is the share of two-way intervals that exclude zero for two equal methods. *Variance* "
        "says where the methods' difference varies: *none* has noise alone. Answers are right or wrong on a probit scale, "
        "200 items. With fewer clusters than items, their sizes are multinomial."
    ),
    "verdicts": (
        "*Judged*: supported or contradicted, for two equal methods. *Any of four*: at least one of four tasks at 5 % "
        "after Holm, for methods that are equal in all. *Matched*: called matched although learning differs by the margin "
        "of 5 points (seeds differ by 2 points). 60 clusters of items."
    ),
    "curves": (
        "Share of simulated studies in which the interval excludes zero: at equal learning "
        "(`harness/stats/learning/equal_learning.py`), and of end points compared as they are. With a true difference of 0 "
        "both methods move along one curve at different speeds, so 0.05 is right and more is a false alarm; with 5 points the "
        "share is the power. Curves have 9 points and 100 items. The methods' difference varies between seeds by the "
        "points given. *Of those compared*: the same without the studies that are not comparable."
    ),
    "reported": (
        "The share of two-way intervals that cover the truth, and of studies in which the report is wrong; a dash where a row "
        "has no such share. *Four answers an item*: scores as under the profile `paper`. *Unpaired seeds*: equal seeds start "
        "from different weights. *Difference between starts*: of two methods' differences. *Best of three rates*: the other "
        "half of the seeds chooses each seed's rate, and two of the three rates are equally good; wrong is a difference "
        "between equal methods. *Equivalent, at the margin*: wrong is `equivalent` where the true effect is the margin. "
        "*Sequence of three "
        "claims*: the first is true; wrong is a difference in one of the others. *Any of four tasks, Holm*: as above. *Seeds "
        "collapse or do not*: each seed of each method loses about 40 points with a probability of 0.3. *Only one method's "
        "seeds collapse*: the same for one of them. That row is outside the bounds, and no interval can help: in 34 % of the "
        "studies with 3 seeds, 17 % with 5 and 3 % with 10 no seed collapses, so nothing shows that one could. 400 studies a "
        "row (standard error 0.011)."
    ),
    "stages": (
        "What a claim at equal learning without a stage estimates: the mean over those of four stages that are comparable, "
        "for the seeds that have common learning in each of them. Columns as above."
    ),
    "again": (
        "Among so many rows some exceed 5.5 % by chance. They were simulated again with more and new studies: 4,000 (standard "
        "error 0.003), and 1,000 for learning curves (0.007). What stays above 5.5 % is outside the promise of 5 %."
    ),
}


class Row(NamedTuple):
    """One setting with the share of studies in which something held, by column."""

    setting: tuple[str, ...]
    shares: tuple[float, ...]


def render_table(name: str, rows: Sequence[Row]) -> str:
    """Return a table's section: its title, its explanation and its rows."""
    return "\n\n".join([f"## {TITLES[name]}", TEXTS[name] + _extremes(name, rows), _table(HEADERS[name], rows)])


def _extremes(name: str, rows: Sequence[Row]) -> str:
    """Return a sentence with the extremes of the tables that say whether the promises are kept."""
    if name == "intervals":
        covered = [row.shares[2] for row in rows]
        return f" Two-way intervals cover {100 * min(covered):.1f} to {100 * max(covered):.1f} %."
    if name == "again" and rows:
        return f" With new studies the highest share is {100 * max(row.shares[-1] for row in rows):.1f} %."
    return ""


def section_of(page: str, name: str) -> str:
    """Return a table's section of a page; empty where the page has none."""
    title = f"## {TITLES[name]}\n"
    return title + page.split(title)[1].split("\n## ")[0].rstrip() if title in page else ""


def replace_section(page: str, name: str, text: str) -> str:
    """Return a page with a table's section replaced, or added at its end."""
    old = section_of(page, name)
    return page.replace(old, text) if old else f"{page}\n\n{text}\n"


def rows_of(page: str, name: str) -> list[list[str]]:
    """Return the cells of a table's rows in a page."""
    lines = [line for line in section_of(page, name).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def _table(header: Sequence[str], rows: Sequence[Row]) -> str:
    cells = [[*row.setting, *("–" if math.isnan(share) else f"{share:.3f}" for share in row.shares)] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [header, *cells]]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
