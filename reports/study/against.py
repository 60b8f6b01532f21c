"""Entries beside the entry that their factor compares them with: paired differences, and whether learning is matched.

Only where both have at least three seeds. Less forgetting is called so only at matched learning: a method that learns less
has less to lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.config.study import Factor
from harness.stats.intervals import Interval
from reports.claims.judge import SEEDS
from reports.compare.rows import MATCHED, how_matched
from reports.document.blocks import Grid
from reports.document.sentences import format_interval, format_points, resolved
from reports.study.data import Config, Results
from reports.study.study_views import MOVED


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


def besides(results: Results, factor: Factor) -> list[PairedContrast]:
    """Return the entries of a factor that have a reference and share at least three seeds with it."""
    study, suite = results.plan.study, results.plan.base.name
    seeds, found = factor.seeds or study.seeds, []
    for entry in factor.entries or study.entries:
        if reference := factor.reference(entry):
            pair = (Config(suite, entry), Config(suite, reference))
            found.append(PairedContrast(entry, reference, tuple(results.paired(*pair, name, seeds) for name in MOVED)))
    return [beside for beside in found if beside.learned.seeds >= SEEDS]


def against_grid(found: Sequence[PairedContrast]) -> Grid:
    """Return the paired differences, those that leave zero out strong, and whether learning is matched."""
    headings = [f"{called}, {unit}" for called, _, unit in MOVED.values()]
    rows, strong = [], set()
    for place, beside in enumerate(found):
        cells = [
            format_interval(difference, write) if difference.seeds else "–"
            for difference, (_, write, _) in zip(beside.differences, MOVED.values(), strict=True)
        ]
        strong |= {(place, 3 + i) for i, difference in enumerate(beside.differences) if resolved(difference, SEEDS)}
        seeds = str(beside.learned.seeds)
        rows.append([beside.entry, beside.reference, seeds, *cells, how_matched(beside.learned)])
    header = ["method", "minus", "seeds", *headings, "learning is"]
    return Grid("Paired differences", header, rows, frozenset(strong))


def against_sentence(found: Sequence[PairedContrast]) -> str:
    """Return what leaves zero out: who learned more or less, and who forgot less or more where learning is matched."""
    told = [told for beside in found for told in _told(beside)]
    unlike = [b.entry for b in found if how_matched(b.learned) != MATCHED and resolved(b.lost, SEEDS)]
    if unlike:
        told.append(f"forgetting differs too for {', '.join(unlike)}, but learning is not shown to match there")
    return f"{'; '.join(told) or 'no difference in learning or forgetting leaves zero out'}."


def _told(beside: PairedContrast) -> Iterator[str]:
    if resolved(beside.learned, SEEDS):
        more = "more" if beside.learned.mean > 0 else "less"
        yield f"{beside.entry} learned {more} than {beside.reference} ({format_interval(beside.learned, format_points)})"
    if resolved(beside.lost, SEEDS) and how_matched(beside.learned) == MATCHED:
        more = "more" if beside.lost.mean > 0 else "less"
        change = format_interval(beside.lost, format_points)
        yield f"{beside.entry} forgot {more} than {beside.reference} at matched learning ({change})"
