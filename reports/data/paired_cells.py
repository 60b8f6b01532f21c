"""Which evaluations stand beside which: cells of runs, terms made of them, sides and pairs, and what may be paired.

Items are matched by their id. Cells that were not made alike are refused, and so are other items unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from harness.errors import RunError
from harness.rundir.differences import find_differences
from harness.rundir.files import read_results
from harness.rundir.reader import RunDir, read_parquet
from harness.rundir.schema import CellSummary, Keys
from harness.rundir.store import cell_name
from harness.stats.significance import differences
from reports.data.cells import CellRef, cell_at
from reports.data.repair_hints import describe_cell, what_differs

ITEM_KEYS = {"prompts", "grading"}  # the fields of comparability that hold which items there are


class Term(NamedTuple):
    """The score of a task after a stage, less its score after stage `minus` where that is given."""

    task: str
    stage: int
    minus: int | None = None


@dataclass(frozen=True)
class RunScores:
    """The cells of one run under one profile and grader; what was read is kept."""

    run: RunDir
    name: str
    profile: str = ""
    grader: str = ""
    _cells: dict[tuple[str, int], CellRef] = field(default_factory=dict[tuple[str, int], CellRef], compare=False)
    _samples: dict[tuple[str, int], pd.DataFrame] = field(
        default_factory=dict[tuple[str, int], pd.DataFrame], compare=False
    )

    def cell(self, task: str, stage: int) -> CellRef:
        """Return a task's evaluation after a stage; its results are None where it has not been evaluated."""
        if (task, stage) not in self._cells:
            self._cells[task, stage] = cell_at(self.run, self.name, stage, task, self.profile, self.grader)
        return self._cells[task, stage]

    def score(self, term: Term) -> float:
        """Return a term's value, nan where a cell is missing."""
        return self._score(term.task, term.stage) - (0.0 if term.minus is None else self._score(term.task, term.minus))

    def samples(self, task: str, stage: int) -> pd.DataFrame | None:
        """Return the graded answers of a cell; None where they were not kept."""
        if (task, stage) not in self._samples:
            file = self.cell(task, stage).answers
            if not file.is_file():
                return None
            columns = ["item_id", "prompt", "target", "score"]
            self._samples[task, stage] = read_parquet(file, columns)
        return self._samples[task, stage]

    def items(self, term: Term) -> pd.Series | None:
        """Return a term's value by item, the mean over an item's answers; None where answers were not kept."""
        values = self._items(term.task, term.stage)
        if term.minus is None or values is None:
            return values
        before = self._items(term.task, term.minus)
        return None if before is None else differences(before, values)

    def repeated(self, task: str) -> list[CellSummary]:
        """Return the results of a task's further evaluations at the start, with other seeds of the engine."""
        folder = self.run.stage(0).path / "noise" / cell_name(task, self.profile)
        found = map(read_results, sorted(folder.glob("*")))
        first = self.cell(task, 0).results
        return [each for each in found if each is not None and first is not None and each.metric == first.metric]

    def _score(self, task: str, stage: int) -> float:
        results = self.cell(task, stage).results
        return math.nan if results is None else results.score

    def _items(self, task: str, stage: int) -> pd.Series | None:
        samples = self.samples(task, stage)
        return None if samples is None else samples.groupby("item_id", sort=False)["score"].mean()


class CellOfRun(NamedTuple):
    """One cell with the evaluations that it is of."""

    evaluations: RunScores
    task: str
    stage: int

    @property
    def cell(self) -> CellRef:
        """The evaluated cell."""
        return self.evaluations.cell(self.task, self.stage)

    @property
    def item_ids(self) -> set[str]:
        """The items it was evaluated on; empty where answers were not kept."""
        samples = self.evaluations.samples(self.task, self.stage)
        return set() if samples is None else set(samples["item_id"])


class Side(NamedTuple):
    """One side of a pair: a run's evaluations and the terms whose mean is compared."""

    evaluations: RunScores
    terms: Sequence[Term]

    @property
    def value(self) -> float:
        """The mean of the terms in 0..1, nan where a cell is missing or there is no term."""
        values = [self.evaluations.score(term) for term in self.terms]
        return sum(values) / len(values) if values else math.nan


class SeedPair(NamedTuple):
    """The two sides at one seed; the difference is `other` minus `base`."""

    seed: int
    base: Side
    other: Side


def check_pairs(pairs: Sequence[SeedPair], shared_items: bool = False) -> None:
    """Raise `RunError` where a cell is not comparable with the others of the same task: the other side's, the other seeds'."""
    for one, other in _partners(pairs):
        cell, partner = one.cell, other.cell
        keys = [each.results.keys if each.results else Keys() for each in (cell, partner)]
        if keys[0].comparability == keys[1].comparability:
            continue
        fields = [found.fields for found in keys]
        only_items = all(fields) and {name.split(".")[0] for name in find_differences(*fields)} <= ITEM_KEYS
        if shared_items and only_items:
            continue
        hint = "; or compare the items that both have with --shared-items" if only_items else ""
        raise RunError(
            f"{cell.task}: {describe_cell(cell)} and {describe_cell(partner)} cannot be paired: "
            f"{what_differs(cell, partner)}{hint}"
        )


def restriction(pairs: Sequence[SeedPair]) -> str:
    """Say to how many items of how many pairs are restricted, per task; empty where all sides have the same items."""
    told: dict[str, None] = {}
    for one, other in _partners(pairs):
        sets = (one.item_ids, other.item_ids)
        if all(sets) and sets[0] != sets[1]:
            both = len(sets[0] & sets[1])
            told[f"{one.task}: {both} items in both, of {len(sets[0])} and {len(sets[1])}"] = None
    return "; ".join(told)


def item_tables(pairs: Sequence[SeedPair], shared: bool) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return by task both sides' values, items (rows) by pairs (columns); empty where any answers were not kept.

    Both sides have terms of the same tasks, each in its own order.
    """
    columns: dict[str, list[tuple[pd.Series, pd.Series]]] = {}
    for pair in pairs:
        theirs = {term.task: term for term in pair.other.terms}
        for here in pair.base.terms:
            there = theirs[here.task]
            base, other = pair.base.evaluations.items(here), pair.other.evaluations.items(there)
            if base is None or other is None:
                return {}
            if set(base.index) != set(other.index):
                base, other = _restricted(pair, here, there, base, other, shared)
            columns.setdefault(here.task, []).append((base, other))
    return {task: _aligned(task, found, shared) for task, found in columns.items()}


def _aligned(
    task: str, found: Sequence[tuple[pd.Series, pd.Series]], shared: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put the pairs side by side over the items that all of them have; refuses other items unless asked to."""
    items = [set(base.index) for base, _ in found]
    both = set.intersection(*items)
    if any(each != both for each in items) and not (shared and both):
        raise RunError(
            f"{task}: seeds share {len(both)} items of {' and '.join(map(str, sorted({len(each) for each in items})))}; "
            + (
                "compare those with --shared-items, or evaluate all seeds on the same items"
                if both
                else "nothing to pair"
            )
        )
    sides = [pd.concat([pair[side] for pair in found], axis=1, join="inner", keys=range(len(found))) for side in (0, 1)]
    return sides[0], sides[1].reindex(sides[0].index)


def _restricted(
    pair: SeedPair, here: Term, there: Term, base: pd.Series, other: pd.Series, shared: bool
) -> tuple[pd.Series, pd.Series]:
    """Return both sides at the items that both have; refuses unless asked to, and items that are not the same question."""
    both = base.index.intersection(other.index)
    paths = [side.evaluations.run.path for side in (pair.base, pair.other)]
    if not shared or both.empty:
        raise RunError(
            f"{here.task}: {paths[0]} and {paths[1]} share {len(both)} items of {len(base)} and {len(other)}; "
            + (
                "compare those with --shared-items, or evaluate both on the same items"
                if len(both)
                else "nothing to pair"
            )
        )
    texts = [_texts(side, term, both) for side, term in ((pair.base, here), (pair.other, there))]
    unlike = (texts[0] != texts[1]).any(axis=1)
    if unlike.any():
        raise RunError(
            f"{here.task}: {int(unlike.sum())} of the {len(both)} items that {paths[0]} and {paths[1]} share have another "
            "prompt or target; evaluate both with one version of the task"
        )
    return base.loc[both], other.loc[both]


def _texts(side: Side, term: Term, items: pd.Index) -> pd.DataFrame:
    samples = side.evaluations.samples(term.task, term.stage)
    assert samples is not None
    return samples.drop_duplicates("item_id").set_index("item_id").loc[items, ["prompt", "target"]]


def _partners(pairs: Sequence[SeedPair]) -> list[tuple[CellOfRun, CellOfRun]]:
    """Return the first base's first cell of each task beside every other cell of that task, of all sides."""
    cells = [
        CellOfRun(side.evaluations, term.task, stage)
        for pair in pairs
        for side in (pair.base, pair.other)
        for term in side.terms
        for stage in (term.stage, term.minus)
        if stage is not None
    ]
    first: dict[str, CellOfRun] = {}
    return [(first.setdefault(seen.task, seen), seen) for seen in cells]
