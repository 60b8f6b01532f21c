"""What reports print besides one difference of two methods: each case simulates one study and says what was right or wrong.

`benchmarks/simulation/coverage.py` counts them for docs/results/coverage.md. In each case the truth is the one that makes the
error most likely: equal methods, or an effect at the edge of what a verdict claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.simulation.simulated_studies import (
    Collapse,
    CurveStudy,
    Generator,
    Spread,
    curves_of_stages,
    several_methods,
    two_methods,
)
from harness.stats.claim_verdicts import DIFFERENT, EQUIVALENT, gate, judge
from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import Interval
from harness.stats.learning.equal_learning import at_equal_learning, over_stages
from harness.stats.learning.rates import ChosenRate, choose_rates, widening
from harness.stats.paired import compare_estimates
from harness.stats.significance import holm
from harness.stats.two_way import two_way_interval, unpaired_interval

Shape = tuple[int, int]  # clusters, items
SAME, APART = (0.45, 0.45), (0.3, 0.6)
COLLAPSE = Collapse()


class SimulatedOutcome(NamedTuple):
    """Whether an interval covered the truth, nan where the case has none, and whether the report was wrong."""

    covers: float
    wrong: float


Case = Callable[[Generator, int, Shape, Spread], SimulatedOutcome]


def four_answers(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate scores that are means over four sampled answers of each item, as under the profile `paper`."""
    (base, other), truth = several_methods(generator, seeds, *shape, spread, APART, answers=4)
    (same, alike), _ = several_methods(generator, seeds, *shape, spread, SAME, answers=4)
    return _outcome(two_way_interval(other - base), truth[1] - truth[0], two_way_interval(alike - same))


def unpaired(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate two methods whose equal seeds start from different weights, so that seeds are not paired."""
    base, other, truth = two_methods(generator, seeds, *shape, spread, APART)
    same, alike, _ = two_methods(generator, seeds, *shape, spread, SAME)
    return _outcome(unpaired_interval(base, other), truth, unpaired_interval(same, alike))


def between_starts(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate the difference between two starts of the difference between two methods."""
    found, truth = several_methods(generator, seeds, *shape, spread, (0.3, 0.6, 0.8, 0.9))
    alike, _ = several_methods(generator, seeds, *shape, spread, (0.3, 0.3, 0.8, 0.8))
    intervals = [two_way_interval((four[1] - four[0]) - (four[3] - four[2])) for four in (found, alike)]
    return _outcome(intervals[0], (truth[1] - truth[0]) - (truth[3] - truth[2]), intervals[1])


def best_rates(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate two equal methods, each at the best of three rates, two of them equally good; halves of the seeds choose."""
    found, _ = several_methods(generator, seeds, *shape, spread, (0.3, 0.45, 0.45) * 2)
    chosen = [choose_rates({rate: each.by_seed for rate, each in enumerate(rates)}) for rates in (found[:3], found[3:])]
    base, other = _at_chosen(found[:3], chosen[0]), _at_chosen(found[3:], chosen[1])
    return SimulatedOutcome(math.nan, _excludes_zero(two_way_interval(other - base).widened(widening(chosen))))


def equivalence(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate an effect that is as large as the margin of equivalence; to call it equivalent is wrong."""
    base, other, truth = two_methods(generator, seeds, *shape, spread, (0.3, 0.45))
    return SimulatedOutcome(math.nan, judge(two_way_interval(other - base), margin=truth) == EQUIVALENT)


def sequence(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate three claims in a fixed sequence: the first is true, so the second is tested; it and the third are not."""
    pairs = [two_methods(generator, seeds, *shape, spread, levels) for levels in ((0.0, 0.9), SAME, SAME)]
    verdicts = gate([judge(two_way_interval(other - base)) for base, other, _ in pairs])
    return SimulatedOutcome(math.nan, any(verdict in DIFFERENT for verdict in verdicts[1:]))


def four_tests(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate two methods that are equal in four tasks, each tested, with Holm's correction."""
    pairs = [two_methods(generator, seeds, *shape, spread, SAME) for _ in range(4)]
    found = [compare_estimates(base, other).p_of_several for base, other, _ in pairs]
    return SimulatedOutcome(math.nan, min(holm(found)) <= 0.05)


def collapsing_seeds(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate methods whose seeds either collapse or do not, each with a probability of 0.3 and by about 40 points."""
    (base, other), truth = several_methods(generator, seeds, *shape, spread, APART, collapse=COLLAPSE)
    (same, alike), _ = several_methods(generator, seeds, *shape, spread, SAME, collapse=COLLAPSE)
    return _outcome(two_way_interval(other - base), truth[1] - truth[0], two_way_interval(alike - same))


def one_collapses(generator: Generator, seeds: int, shape: Shape, spread: Spread) -> SimulatedOutcome:
    """Simulate a method whose seeds either collapse or do not, against one whose seeds do not."""
    (base, other), truth = several_methods(generator, seeds, *shape, spread, SAME, collapse=Collapse(first=1))
    return SimulatedOutcome(_covers(two_way_interval(other - base), truth[1] - truth[0]), math.nan)


CASES: dict[str, Case] = {
    "four answers an item": four_answers,
    "unpaired seeds": unpaired,
    "difference between starts": between_starts,
    "best of three rates": best_rates,
    "equivalent, at the margin": equivalence,
    "sequence of three claims": sequence,
    "any of four tasks, Holm": four_tests,
    "seeds collapse or do not": collapsing_seeds,
    "only one method's seeds collapse": one_collapses,
}


def mean_over_stages(generator: Generator, seeds: int, study: CurveStudy, stages: int) -> tuple[bool, bool]:
    """Return whether two methods differ at equal learning, mean over the comparable stages, and whether none is comparable.

    This is what a claim at equal learning without a stage estimates: stages are chosen by the data, and seeds that lack
    common learning in one of them are left out.
    """
    compared = [at_equal_learning(*sides) for sides in curves_of_stages(generator, seeds, study, stages)]
    comparable = [stage for stage in compared if not stage.obstacle]
    if not comparable:
        return False, True
    mean = over_stages(comparable)
    return not mean.obstacle and _excludes_zero(two_way_interval(mean.difference)), bool(mean.obstacle)


def _at_chosen(by_rate: Sequence[Estimate], chosen: Mapping[int, ChosenRate]) -> Estimate:
    """Return each seed's scores at the rate that was chosen for it."""
    tables = [found.items["task"] for found in by_rate]
    columns = [tables[int(each.rate)].values[:, seed] for seed, each in chosen.items()]
    table = ItemTable(np.stack(columns, axis=1), tables[0].ids, tables[0].clusters)
    return Estimate({seed: each.value for seed, each in chosen.items()}, {"task": table})


def _outcome(interval: Interval, truth: float, alike: Interval) -> SimulatedOutcome:
    return SimulatedOutcome(_covers(interval, truth), _excludes_zero(alike))


def _covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def _excludes_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0
