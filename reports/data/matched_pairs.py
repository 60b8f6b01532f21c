"""Compare what methods kept where they learned equally: a method that learned less has less to forget.

Learning is matched where the whole 95 % interval of the paired difference in learning accuracy lies within the margin.
Intervals are for another seed and other items, over the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pandas as pd

from harness.stats.continual import ACCURACY, FORGETTING, LEARNING
from harness.stats.intervals import Interval
from harness.stats.learning.matching import how_matched
from harness.stats.score_matrix import Figure
from harness.stats.two_way import two_way_interval, unpaired_interval
from reports.data.frames import Frames
from reports.data.methods import Method, by_start, different_starts, methods_of

SINGLE = "one seed"
FEW = 4  # up to so many methods, every pair is compared; of more, each is compared with one
COMPARED = {"learned": LEARNING, "final": ACCURACY, "forgot": FORGETTING}


def matched_table(frames: Frames) -> pd.DataFrame:
    """Return one row per pair of methods: their differences, and whether learning is matched.

    The columns `learned`, `final` and `forgot` hold an `Interval` each, the first method minus the second, as shares. `status`
    is matched, matched on average only, unmatched, or one seed where there is no interval.
    """
    methods = {method.name: method for method in methods_of(frames)}
    return pd.DataFrame([_row(methods[one], methods[other]) for one, other in compared_labels(frames)])


def difference(one: Method, other: Method, figure: Figure) -> Interval:
    """Return `one - other` of a figure with its interval; seeds that start from other weights are not paired."""
    sides = one.estimate(figure), other.estimate(figure)
    if different_starts(one, other):
        return unpaired_interval(sides[1], sides[0]).of_difference(figure.unit)
    return two_way_interval((sides[0] - sides[1]).finite()).of_difference(figure.unit)


def compared_labels(frames: Frames) -> Iterator[tuple[str, str]]:
    """Yield pairs of methods that share suite, order and start; controls are left out.

    Of more than FEW methods, each is compared with the first one whose kind is OPD, or else with the first one.
    """
    for methods in by_start(method for method in methods_of(frames) if not method.control).values():
        if len(methods) <= FEW:
            yield from ((later.name, earlier.name) for earlier, later in combinations(methods, 2))
        else:
            first = next((method for method in methods if method.first.manifest.kind == "opd"), methods[0])
            yield from ((method.name, first.name) for method in methods if method is not first)


def _row(one: Method, other: Method) -> dict[str, object]:
    found = {name: difference(one, other, figure) for name, figure in COMPARED.items()}
    status = how_matched(found["learned"]) if found["learned"].seeds > 1 else SINGLE
    return {"label": one.name, "against": other.name, "seeds": found["learned"].seeds, "status": status, **found}
