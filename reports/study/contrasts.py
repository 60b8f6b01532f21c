"""Compare entries with their references, as the study's YAML pairs them: paired differences, and whether learning is matched.

Only pairs with at least three seeds in common are compared. Less forgetting is stated only at matched learning: a method that
learns less has less to forget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.config.study_file import Factor
from harness.stats.intervals import Interval, resolved
from harness.stats.learning.matching import MATCHED, how_matched
from harness.stats.looks import FEWEST_SEEDS
from reports.document.blocks import Grid
from reports.formatting import format_count, format_interval, format_nats_change, format_points
from reports.study.study_results import Results

MOVED = {
    "learning_accuracy": ("learning", format_points, "points"),
    "forgetting_chaudhry": ("forgetting", format_points, "points"),
    "entropy": ("entropy", format_nats_change, "nats"),
}


@dataclass(frozen=True)
class PairedContrast:
    """An entry and its reference, with the paired differences entry minus reference of MOVED."""

    entry: str
    reference: str
    differences: tuple[Interval, ...]

    @property
    def learned(self) -> Interval:
        """The difference in learning accuracy."""
        return self.differences[0]

    @property
    def lost(self) -> Interval:
        """The difference in Chaudhry's forgetting."""
        return self.differences[1]


def find_contrasts(results: Results, factor: Factor) -> list[PairedContrast]:
    """Return the entries of a factor that have a reference and share at least three seeds with it."""
    study = results.plan.study
    seeds, found = factor.seeds or study.seeds, []
    for entry, reference in study.contrasts_of(factor):
        pair = (results.in_factor(factor, entry), results.in_factor(factor, reference))
        found.append(PairedContrast(entry, reference, tuple(results.paired(*pair, name, seeds) for name in MOVED)))
    return [contrast for contrast in found if contrast.learned.seeds >= FEWEST_SEEDS]


def contrasts_grid(found: Sequence[PairedContrast], title: str = "Paired differences") -> Grid:
    """Return the paired differences, strong where the interval excludes zero, and whether learning is matched."""
    headings = [f"{called}, {unit}" for called, _, unit in MOVED.values()]
    rows, strong = [], set()
    for place, contrast in enumerate(found):
        cells = [
            format_interval(difference, write)
            for difference, (_, write, _) in zip(contrast.differences, MOVED.values(), strict=True)
        ]
        strong |= {
            (place, 3 + i) for i, difference in enumerate(contrast.differences) if resolved(difference, FEWEST_SEEDS)
        }
        seeds = str(contrast.learned.seeds)
        rows.append([contrast.entry, contrast.reference, seeds, *cells, how_matched(contrast.learned)])
    header = ["method", "minus", "seeds", *headings, "learning is"]
    return Grid(title, header, rows, frozenset(strong))


def describe_contrasts(found: Sequence[PairedContrast]) -> str:
    """Return a sentence on intervals that exclude zero: of learning, and of forgetting where learning is matched."""
    parts = [part for contrast in found for part in _describe(contrast)]
    unlike = [
        each.entry for each in found if how_matched(each.learned) != MATCHED and resolved(each.lost, FEWEST_SEEDS)
    ]
    if unlike:
        parts.append(f"forgetting differs too for {', '.join(unlike)}, but learning is not shown to match there")
    return f"{'; '.join(parts) or 'no interval of learning or forgetting excludes zero'}."


def describe_by_start(
    results: Results, figure: str, called: str, write: Callable[[float], str], unit: str = ""
) -> list[str]:
    """Return a sentence per contrast of the study that has runs: the paired difference of a figure, from each start."""
    sentences = []
    for entry, reference in results.plan.study.contrasts:
        found = []
        for start in results.layout.starts:
            change = results.paired(results.layout.own(start, entry), results.layout.own(start, reference), figure)
            if change.seeds:
                where = f" from the {start} start" if start else ""
                found.append(f"{format_interval(change, write)}{unit}{where} ({format_count(change.seeds, 'seed')})")
        if found:
            sentences.append(f"{called}, {entry} minus {reference}: {'; '.join(found)}.")
    return sentences


def _describe(contrast: PairedContrast) -> Iterator[str]:
    if resolved(contrast.learned, FEWEST_SEEDS):
        more = "more" if contrast.learned.mean > 0 else "less"
        yield f"{contrast.entry} learned {more} than {contrast.reference} ({format_interval(contrast.learned, format_points)})"
    if resolved(contrast.lost, FEWEST_SEEDS) and how_matched(contrast.learned) == MATCHED:
        more = "more" if contrast.lost.mean > 0 else "less"
        change = format_interval(contrast.lost, format_points)
        yield f"{contrast.entry} forgot {more} than {contrast.reference} at matched learning ({change})"
