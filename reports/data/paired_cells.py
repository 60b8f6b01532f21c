"""Match evaluations of two runs item by item, and say which may be paired.

Items are matched by their id. Cells that were made under different conditions are refused. So are different items, unless the
user asks for the items that both have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.errors import RunError
from harness.rundir.differences import find_differences
from harness.rundir.records.cell_records import CellSummary, Keys
from harness.stats.estimates import Estimate, ItemTable
from harness.stats.paired import Difference, compare_estimates, compare_unpaired
from harness.stats.sampling import noise_floor
from harness.stats.significance import Flips, find_flips
from reports.data.cells import CellRef
from reports.data.repair_hints import describe_cell, what_differs
from reports.data.run_scores import RunScores, Side

ITEM_KEYS = {"prompts", "grading"}  # the comparability fields that change with the set of items


class SeedPair(NamedTuple):
    """The two sides at one seed; the difference is `other` minus `base`."""

    seed: int
    base: Side
    other: Side


def complete_pairs(pairs: Sequence[SeedPair]) -> list[SeedPair]:
    """Return the pairs whose two sides both have the quantity."""
    return [pair for pair in pairs if not math.isnan(pair.base.value) and not math.isnan(pair.other.value)]


def compare_pairs(pairs: Sequence[SeedPair], shared_items: bool = False) -> Difference:
    """Return the difference of a quantity over pairs of runs; pairs that lack a cell are left out.

    Raises `RunError` where cells are not comparable, with what differs and the command that fixes it, and where the items
    differ; `shared_items` restricts such pairs to the items that both have (see `restriction`).
    """
    complete = complete_pairs(pairs)
    check_pairs(complete, shared_items)
    tables = item_tables(complete, shared_items)
    restricted = bool(tables) and shared_items and bool(restriction(complete))
    estimates = [_estimate(complete, side, tables, restricted) for side in (0, 1)]
    single = all(len(terms) == 1 for pair in complete for terms in pair.base.tasks.values())
    turned = [_flips(pair, tables, place) for place, pair in enumerate(complete)] if tables and single else []
    return compare_estimates(estimates[0], estimates[1], turned)


def compare_groups(base: Mapping[int, Side], other: Mapping[int, Side]) -> Difference:
    """Return the difference of a quantity between two groups of runs whose seeds are not pairs; their items are.

    Raises `RunError` where cells are not comparable.
    """
    groups = [{seed: side for seed, side in each.items() if not math.isnan(side.value)} for each in (base, other)]
    check_pairs([SeedPair(seed, side, side) for group in groups for seed, side in group.items()], shared_items=None)
    return compare_unpaired(*map(estimate_of, groups))


def estimate_of(sides: Mapping[int, Side]) -> Estimate:
    """Return a quantity by seed and by item; without items where answers were not kept, or where seeds' items differ."""
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


def noise_of_pairs(pairs: Sequence[SeedPair]) -> float:
    """Return the largest standard deviation of a score over evaluations of one model that differ only in the engine's seed.

    All stages of the quantity's tasks count, and the start's repeats (`evaluation.noise_floor`). In 0..1; nan where no weights
    were evaluated twice.
    """
    scores: dict[tuple[str, str, str], dict[object, float]] = {}
    for pair in pairs:
        for side in (pair.base, pair.other):
            for task, results in _evaluated(side):
                if results.seed is not None:
                    key = (task, results.weights, results.keys.comparability)
                    scores.setdefault(key, {})[results.seed] = results.score
    return max((noise_floor(list(found.values())) for found in scores.values() if len(found) > 1), default=math.nan)


def check_pairs(pairs: Sequence[SeedPair], shared_items: bool | None = False) -> None:
    """Raise `RunError` where a cell is not comparable with the task's cells of the other side or of other seeds.

    `shared_items` accepts different items whose answers were kept; None where the caller cannot restrict them.
    """
    for one, other in _partners(pairs):
        cell, partner = one.cell, other.cell
        keys = [each.results.keys if each.results else Keys() for each in (cell, partner)]
        if keys[0].comparability == keys[1].comparability:
            continue
        fields = [found.fields for found in keys]
        only_items = all(fields) and {name.split(".")[0] for name in find_differences(*fields)} <= ITEM_KEYS
        if shared_items and only_items and one.item_ids and other.item_ids:
            continue
        hint = ""
        if only_items and shared_items:
            hint = "; --shared-items needs the answers of both, and some were not kept"
        elif only_items and shared_items is not None:
            hint = "; or compare the items that both have with --shared-items"
        raise RunError(
            f"{cell.task}: {describe_cell(cell)} and {describe_cell(partner)} cannot be paired: "
            f"{what_differs(cell, partner)}{hint}"
        )


def restriction(pairs: Sequence[SeedPair]) -> str:
    """Say per task how many items both sides have, and how many each; empty where all sides have the same items."""
    counts: dict[str, None] = {}
    for one, other in _partners(pairs):
        sets = (one.item_ids, other.item_ids)
        if all(sets) and sets[0] != sets[1]:
            both = len(sets[0] & sets[1])
            counts[f"{one.task}: {both} items in both, of {len(sets[0])} and {len(sets[1])}"] = None
    return "; ".join(counts)


Tables = Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]


def item_tables(pairs: Sequence[SeedPair], shared: bool) -> Tables:
    """Return by task both sides' weighted sums as frames (items, pairs); empty where any answers were not kept.

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
    """Return one side by seed and by item; with `restricted` items the values are means over these items."""
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
    """Count the items lost and gained in one pair, added over tasks; an item is right where all its answers score 1."""
    counted = [
        find_flips(
            *(both[side][place] / each.tasks[task][0].weight for side, each in enumerate((pair.base, pair.other)))
        )
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
    """Return both sides of all pairs over the items that all have; raises `RunError` for different items unless `shared`."""
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
    """Return both sides at the items that both have; raises `RunError` unless `shared`, or where prompts or targets differ."""
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
            f"{task}: {int(different.sum())} of the {len(both)} items that {paths[0]} and {paths[1]} share differ in their "
            "prompt or target; evaluate both with one version of the task"
        )
    return base.loc[both], other.loc[both]


def _texts(side: Side, task: str, items: pd.Index) -> pd.DataFrame:
    samples = side.evaluations.samples(task, side.tasks[task][0].stage)
    assert samples is not None
    return samples.drop_duplicates("item_id").set_index("item_id").loc[items, ["prompt", "target"]]


class _CellOfRun(NamedTuple):
    """One cell, and the run's evaluations that it belongs to."""

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
    """Return the first cell of each task with every cell of that task, of both sides and all pairs.

    A cell that is not evaluated yet is left out: its side has no value.
    """
    cells = [
        _CellOfRun(side.evaluations, term.task, term.stage)
        for pair in pairs
        for side in (pair.base, pair.other)
        for term in side.terms
    ]
    first: dict[str, _CellOfRun] = {}
    return [(first.setdefault(each.task, each), each) for each in cells if each.cell.results is not None]
