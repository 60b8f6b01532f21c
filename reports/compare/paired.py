"""Paired differences between evaluations of the same items: two stages of a run, two methods, two machines.

A quantity is a mean of terms, each a score of one task after one stage, or the change between two stages. All of them are
means over items, so every quantity has a difference per seed and a difference per item, and the two stay apart: the t
interval is over seeds' differences, the bootstrap interval over items' differences with the seeds given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from harness.rundir.schema import CellSummary
from harness.stats.intervals import Interval, item_interval, t_interval
from harness.stats.power import detectable
from harness.stats.sampling import Variances, variances
from harness.stats.sampling import noise_floor as repeats
from harness.stats.significance import Flips, flips, p_value
from reports.data.paired_cells import SeedPair, Side, check_pairs, item_tables, restriction

NOTHING = t_interval([])
UNKNOWN = Variances(math.nan, math.nan)
ROUNDING = 1e-9  # what is smaller came from adding floats: seeds or items that differ alike


@dataclass(frozen=True)
class Difference:
    """Other minus base of one quantity, in 0..1 (or its own unit), with everything that says how sure it is.

    `seeds` is the mean with its t interval over seeds, `items` the same mean with its bootstrap interval over items, the
    seeds given. `flips` holds each seed's items lost and gained, for quantities that are right or wrong by item.
    `detectable` is the smallest difference found with 80 % power: over these seeds, and over these items in one seed.
    `by_seed` is the difference by seed, `items_by_seed` the items' differences of each of them.
    """

    base: float
    other: float
    seeds: Interval
    items: Interval = NOTHING
    variances: Variances = UNKNOWN
    flips: tuple[Flips, ...] = ()
    item_count: int = 0
    detectable_seeds: float = math.nan
    detectable_items: float = math.nan
    by_seed: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    items_by_seed: tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...] = ()

    @property
    def p(self) -> float:
        """The paired t test over seeds; nan for fewer than two seeds or seeds that differ alike."""
        return p_value(self.seeds) if self.seeds.high - self.seeds.low > ROUNDING else math.nan

    @property
    def items_or_mean(self) -> Interval:
        """The interval over items, the mean alone where answers were not kept."""
        return self.items if self.items.seeds else self.seeds

    @property
    def mcnemar(self) -> float:
        """The smallest of the seeds' exact McNemar p values times their number: seeds share items, so no pooling."""
        return min(1.0, len(self.flips) * min(found.p_value for found in self.flips)) if self.flips else math.nan

    @property
    def lost(self) -> int:
        """Items right for base and wrong for other, added over seeds."""
        return sum(found.lost for found in self.flips)

    @property
    def gained(self) -> int:
        """Items wrong for base and right for other, added over seeds."""
        return sum(found.gained for found in self.flips)


def compare_values(base: pd.Series, other: pd.Series) -> Difference:
    """Return the difference of a quantity that has one value per seed and no items, over the seeds that both have."""
    change = (other - base).dropna()
    spread = float(change.std(ddof=1)) if len(change) > 1 else math.nan
    kept = [float(values.reindex(change.index).mean()) for values in (base, other)]
    found = detectable(spread, len(change)) if spread > ROUNDING else math.nan
    return Difference(kept[0], kept[1], t_interval(change), detectable_seeds=found, by_seed=change)


def compare_pairs(pairs: Sequence[SeedPair], shared_items: bool = False) -> Difference:
    """Return the difference of a quantity over pairs of runs; pairs that lack a cell are left out.

    Raises `RunError` where cells are not comparable, with what differs and the command that mends it, and where the items
    are not the same; `shared_items` restricts such pairs to the items that both have (see `restriction`).
    """
    index = [pair.seed for pair in pairs]
    sides = ([pair.base.value for pair in pairs], [pair.other.value for pair in pairs])
    values = [pd.Series(side, index=index, dtype=float) for side in sides]
    complete = [pair for pair in pairs if not math.isnan(pair.base.value) and not math.isnan(pair.other.value)]
    check_pairs(complete, shared_items)
    tables = item_tables(complete, shared_items)
    if not tables:
        return compare_values(*values)
    if shared_items and restriction(complete):
        means = [sum(table[side].mean() for table in tables.values()) / len(tables) for side in (0, 1)]
        values = [pd.Series(np.asarray(mean), index=[pair.seed for pair in complete]) for mean in means]
    binary = all(term.minus is None for pair in complete for term in pair.base.terms)
    return _with_items(compare_values(*values), tables, binary)


def noise_floor(pairs: Sequence[SeedPair]) -> float:
    """Return the largest standard deviation of a score over evaluations of one model that differ in the engine's seed alone.

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


def _evaluated(side: Side) -> Iterator[tuple[str, CellSummary]]:
    """Yield all results of a side's run on its tasks, the start's repeats among them."""
    found = side.evaluations
    for term in side.terms:
        stages = (found.cell(term.task, stage).results for stage in range(len(found.run.stages) + 1))
        yield from ((term.task, results) for results in stages if results is not None)
        yield from ((term.task, results) for results in found.repeated(term.task))


def _with_items(found: Difference, tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], binary: bool) -> Difference:
    """Add what the items say: their interval with the seeds given, variances by source, flips, and what could show."""
    changes = {task: other - base for task, (base, other) in tables.items()}
    pooled = _pooled([change.mean(axis=1) for change in changes.values()])
    seeds = range(next(iter(changes.values())).shape[1])
    by_seed = [_pooled([change[seed] for change in changes.values()]) for seed in seeds]
    spread = float(np.sqrt(np.mean([values.var(ddof=1) for values in by_seed]))) if len(pooled) > 1 else math.nan
    turned = tuple(_flips(tables.values(), seed) for seed in seeds) if binary else ()
    return replace(
        found,
        items=item_interval(pooled),
        variances=variances(by_seed) if len(pooled) > 1 else found.variances,
        flips=turned,
        item_count=len(pooled),
        detectable_items=detectable(spread, len(pooled)) if spread > ROUNDING else math.nan,
        items_by_seed=tuple(by_seed),
    )


def _pooled(tasks: Sequence[pd.Series]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the items of several tasks as one sample whose mean is the mean over tasks of their means.

    Each item's deviation from its task's mean is scaled by N / (J n_j), so that the variance of the sample's mean is that
    of the stratified one, sum_j s_j^2 / (J^2 n_j); of one task, its items as they are.
    """
    overall, total = float(np.mean([task.mean() for task in tasks])), sum(len(task) for task in tasks)
    scaled = [(task.to_numpy(float) - task.mean()) * total / (len(tasks) * len(task)) for task in tasks]
    return np.concatenate(scaled) + overall


def _flips(tables: Iterable[tuple[pd.DataFrame, pd.DataFrame]], seed: int) -> Flips:
    found = [flips(base[seed], other[seed]) for base, other in tables]
    return Flips(*(sum(each[place] for each in found) for place in range(3)))
