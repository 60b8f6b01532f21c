"""Match evaluations of two runs item by item: the cells of a run, sides made of a figure's terms, and what may be paired.

Items are matched by their id. Cells that were made under different conditions are refused, and so are different items unless
the user asks for the items that both have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.errors import RunError
from harness.rundir.differences import find_differences
from harness.rundir.files import read_results
from harness.rundir.reader import RunDir, read_parquet
from harness.rundir.schema import CellSummary, Keys
from harness.rundir.store import cell_name
from harness.stats.continual import Figure, ScoreMatrix, Term
from harness.stats.estimates import Estimate, ItemTable
from harness.stats.paired import Difference, compare, compare_unpaired
from harness.stats.sampling import noise_floor as repeats
from harness.stats.significance import Flips, flips
from reports.data.cells import CellRef, cell_at
from reports.data.repair_hints import describe_cell, what_differs

ITEM_KEYS = {"prompts", "grading"}  # the fields of comparability that hold which items there are


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

    @cached_property
    def matrix(self) -> ScoreMatrix:
        """The run's scores by stage and task; a cell that is missing is nan."""
        tasks = self.run.tasks_under(self.profile)
        trained = {task: stage for stage, names in enumerate(self.run.trains, start=1) for task in names}
        own = {task: stage for task, stage in trained.items() if task in tasks}
        probes = [task for task in tasks if task not in own]
        stages = range(len(self.run.stages) + 1)
        scores = [[self.score(task, stage) for task in (*own, *probes)] for stage in stages]
        return ScoreMatrix(np.array(scores, dtype=float), tuple(own), tuple(probes), tuple(own.values()))

    def cell(self, task: str, stage: int) -> CellRef:
        """Return a task's evaluation after a stage; its results are None where it has not been evaluated."""
        if (task, stage) not in self._cells:
            self._cells[task, stage] = cell_at(self.run, self.name, stage, task, self.profile, self.grader)
        return self._cells[task, stage]

    def score(self, task: str, stage: int) -> float:
        """Return a cell's score, nan where it is missing."""
        results = self.cell(task, stage).results
        return math.nan if results is None else results.score

    def samples(self, task: str, stage: int) -> pd.DataFrame | None:
        """Return the graded answers of a cell; None where they were not kept."""
        if (task, stage) not in self._samples:
            file = self.cell(task, stage).answers
            if not file.is_file():
                return None
            columns = ["item_id", "prompt", "target", "score", "cluster"]
            self._samples[task, stage] = read_parquet(file, columns)
        return self._samples[task, stage]

    def items(self, task: str, stage: int) -> pd.Series | None:
        """Return a cell's score by item, the mean over an item's answers; None where answers were not kept."""
        samples = self.samples(task, stage)
        return None if samples is None else samples.groupby("item_id", sort=False)["score"].mean()

    def clusters(self, task: str, stage: int) -> Mapping[Any, str]:
        """Return by item the cluster of items that it depends on; empty for evaluations that name none."""
        samples = self.samples(task, stage)
        if samples is None or "cluster" not in samples:
            return {}
        return samples.drop_duplicates("item_id").set_index("item_id")["cluster"].astype(str).to_dict()

    def repeated(self, task: str) -> list[CellSummary]:
        """Return the results of a task's further evaluations at the start, with other seeds of the engine."""
        folder = self.run.stage(0).path / "noise" / cell_name(task, self.profile)
        found = map(read_results, sorted(folder.glob("*")))
        first = self.cell(task, 0).results
        return [each for each in found if each is not None and first is not None and each.metric == first.metric]

    def side(self, figure: Figure, last: int, task: str = "") -> Side:
        """Return a figure's terms of this run, or of one of its tasks, as if `last` were the last stage."""
        matrix = self.matrix.up_to(last)
        return Side(self, figure.terms(matrix, task), figure.offsets(matrix, task))


class Side(NamedTuple):
    """One side of a pair: a run's evaluations, the weighted cells that are added up, and what does not come from cells."""

    evaluations: RunScores
    terms: Sequence[Term]
    offset: float = 0.0

    @property
    def value(self) -> float:
        """The weighted sum in 0..1, nan where a cell is missing or there is no term."""
        scores = [term.weight * self.evaluations.score(term.task, term.stage) for term in self.terms]
        return sum(scores) + self.offset if scores else math.nan

    @property
    def tasks(self) -> dict[str, list[Term]]:
        """The terms by task, in order."""
        found: dict[str, list[Term]] = {}
        for term in self.terms:
            found.setdefault(term.task, []).append(term)
        return found

    def clusters(self, task: str) -> Mapping[Any, str]:
        """Return by item of a task its cluster; see `RunScores.clusters`."""
        return self.evaluations.clusters(task, self.tasks[task][0].stage)

    def items(self, task: str) -> pd.Series | None:
        """Return the weighted sum of a task's cells by item; None where answers were not kept."""
        cells = [(term.weight, self.evaluations.items(task, term.stage)) for term in self.tasks[task]]
        known = [weight * scores for weight, scores in cells if scores is not None]
        if len(known) < len(cells):
            return None
        first, *further = known
        for scores in further:
            if set(scores.index) != set(first.index):
                raise RunError(
                    f"{task}: {self.evaluations.run.path} has different items after different stages; evaluate all stages "
                    "on the same items"
                )
            first = first + scores
        return first.reindex(known[0].index)


class SeedPair(NamedTuple):
    """The two sides at one seed; the difference is `other` minus `base`."""

    seed: int
    base: Side
    other: Side


def compare_pairs(pairs: Sequence[SeedPair], shared_items: bool = False) -> Difference:
    """Return the difference of a quantity over pairs of runs; pairs that lack a cell are left out.

    Raises `RunError` where cells are not comparable, with what differs and the command that fixes it, and where the items
    differ; `shared_items` restricts such pairs to the items that both have (see `restriction`).
    """
    complete = [pair for pair in pairs if not math.isnan(pair.base.value) and not math.isnan(pair.other.value)]
    check_pairs(complete, shared_items)
    tables = item_tables(complete, shared_items)
    restricted = bool(tables) and shared_items and bool(restriction(complete))
    estimates = [_estimate(complete, side, tables, restricted) for side in (0, 1)]
    single = all(len(terms) == 1 for pair in complete for terms in pair.base.tasks.values())
    turned = [_flips(pair, tables, place) for place, pair in enumerate(complete)] if tables and single else []
    return compare(estimates[0], estimates[1], turned)


def compare_groups(base: Mapping[int, Side], other: Mapping[int, Side]) -> Difference:
    """Return the difference of a quantity between two groups of runs whose seeds are not pairs; their items are.

    Raises `RunError` where cells are not comparable.
    """
    groups = [{seed: side for seed, side in each.items() if not math.isnan(side.value)} for each in (base, other)]
    check_pairs([SeedPair(seed, side, side) for group in groups for seed, side in group.items()])
    return compare_unpaired(*map(estimate_of, groups))


def estimate_of(sides: Mapping[int, Side]) -> Estimate:
    """Return a quantity by seed with its items; without items where answers were not kept or seeds hold different ones."""
    complete = {seed: side for seed, side in sides.items() if not math.isnan(side.value)}
    tasks = dict.fromkeys(task for side in complete.values() for task in side.tasks)
    items: dict[str, ItemTable] = {}
    for task in tasks:
        columns = [side.items(task) if task in side.tasks else None for side in complete.values()]
        known = [column for column in columns if column is not None]
        if len(known) < len(columns) or any(set(column.index) != set(known[0].index) for column in known):
            items.clear()
            break
        first = next(iter(complete.values()))
        items[task] = _item_table(pd.concat(known, axis=1, keys=range(len(known))), first.clusters(task))
    return Estimate({seed: side.value for seed, side in complete.items()}, items)


def noise_floor(pairs: Sequence[SeedPair]) -> float:
    """Return the largest standard deviation of a score over evaluations of one model that differ only in the engine's seed.

    Looked for among all stages of the quantity's tasks, and the start's own repeats (`evaluation.noise_floor`); nan where no
    weights were evaluated twice. In 0..1.
    """
    scores: dict[tuple[str, str, str], dict[object, float]] = {}
    for pair in pairs:
        for side in (pair.base, pair.other):
            for task, results in _evaluated(side):
                if results.seed is not None:
                    key = (task, results.weights, results.keys.comparability)
                    scores.setdefault(key, {})[results.seed] = results.score
    return max((repeats(list(found.values())) for found in scores.values() if len(found) > 1), default=math.nan)


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
    counts: dict[str, None] = {}
    for one, other in _partners(pairs):
        sets = (one.item_ids, other.item_ids)
        if all(sets) and sets[0] != sets[1]:
            both = len(sets[0] & sets[1])
            counts[f"{one.task}: {both} items in both, of {len(sets[0])} and {len(sets[1])}"] = None
    return "; ".join(counts)


Tables = Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]


def item_tables(pairs: Sequence[SeedPair], shared: bool) -> Tables:
    """Return by task both sides' weighted sums, items (rows) by pairs (columns); empty where any answers were not kept.

    Both sides have terms of the same tasks, each in its own order.
    """
    columns: dict[str, list[tuple[pd.Series, pd.Series]]] = {}
    for pair in pairs:
        for task in pair.base.tasks:
            base, other = pair.base.items(task), pair.other.items(task)
            if base is None or other is None:
                return {}
            if set(base.index) != set(other.index):
                base, other = _restricted(pair, task, base, other, shared)
            columns.setdefault(task, []).append((base, other))
    return {task: _aligned(task, found, shared) for task, found in columns.items()}


def _estimate(pairs: Sequence[SeedPair], side: int, tables: Tables, restricted: bool) -> Estimate:
    """Return one side by seed, with its items; on restricted items the values are means over these."""
    items = {task: _item_table(both[side], pairs[0].base.clusters(task)) for task, both in tables.items()}
    sides = [(pair.base, pair.other)[side] for pair in pairs]
    if restricted:
        sums = sum(table.values.mean(axis=0) for table in items.values())
        values = [float(value) for value in np.asarray(sums) + [each.offset for each in sides]]
    else:
        values = [each.value for each in sides]
    return Estimate(dict(zip([pair.seed for pair in pairs], values, strict=True)), items)


def _item_table(values: pd.DataFrame, clusters: Mapping[Any, str]) -> ItemTable:
    ids = tuple(map(str, values.index))
    return ItemTable(values.to_numpy(float), ids, tuple(str(clusters.get(item, item)) for item in values.index))


def _flips(pair: SeedPair, tables: Tables, place: int) -> Flips:
    """Count the items that turned in one pair, added over tasks; right is a score of 1, with several answers all of them."""
    counted = [
        flips(*(both[side][place] / each.tasks[task][0].weight for side, each in enumerate((pair.base, pair.other))))
        for task, both in tables.items()
    ]
    return Flips(*(sum(each[column] for each in counted) for column in range(3)))


def _evaluated(side: Side) -> Iterator[tuple[str, CellSummary]]:
    """Yield all results of a side's run on its tasks, the start's repeats among them."""
    found = side.evaluations
    for task in side.tasks:
        stages = (found.cell(task, stage).results for stage in range(len(found.run.stages) + 1))
        yield from ((task, results) for results in stages if results is not None)
        yield from ((task, results) for results in found.repeated(task))


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
    pair: SeedPair, task: str, base: pd.Series, other: pd.Series, shared: bool
) -> tuple[pd.Series, pd.Series]:
    """Return both sides at the items that both have; refuses unless asked to, and items that are not the same question."""
    both = base.index.intersection(other.index)
    paths = [side.evaluations.run.path for side in (pair.base, pair.other)]
    if not shared or both.empty:
        raise RunError(
            f"{task}: {paths[0]} and {paths[1]} share {len(both)} items of {len(base)} and {len(other)}; "
            + (
                "compare those with --shared-items, or evaluate both on the same items"
                if len(both)
                else "nothing to pair"
            )
        )
    texts = [_texts(side, task, both) for side in (pair.base, pair.other)]
    different = (texts[0] != texts[1]).any(axis=1)
    if different.any():
        raise RunError(
            f"{task}: {int(different.sum())} of the {len(both)} items that {paths[0]} and {paths[1]} share have another "
            "prompt or target; evaluate both with one version of the task"
        )
    return base.loc[both], other.loc[both]


def _texts(side: Side, task: str, items: pd.Index) -> pd.DataFrame:
    samples = side.evaluations.samples(task, side.tasks[task][0].stage)
    assert samples is not None
    return samples.drop_duplicates("item_id").set_index("item_id").loc[items, ["prompt", "target"]]


class _CellOfRun(NamedTuple):
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


def _partners(pairs: Sequence[SeedPair]) -> list[tuple[_CellOfRun, _CellOfRun]]:
    """Return the first base's first cell of each task with every other cell of that task, of all sides."""
    cells = [
        _CellOfRun(side.evaluations, term.task, term.stage)
        for pair in pairs
        for side in (pair.base, pair.other)
        for term in side.terms
    ]
    first: dict[str, _CellOfRun] = {}
    return [(first.setdefault(each.task, each), each) for each in cells]
