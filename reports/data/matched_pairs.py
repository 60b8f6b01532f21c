"""What methods kept, compared where they learned equally: elsewhere a method that learned less has less to forget.

Learning is matched where the whole 95 % t interval of the paired difference in learning accuracy, over the seeds that both
have, lies within the margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pandas as pd

from harness.stats import continual
from harness.stats.intervals import Interval, t_interval
from harness.stats.matching import how_matched
from reports.data.frames import Frames
from reports.data.tables import figures_by_seed

SINGLE = "one seed"
FEW = 4  # methods that are all compared with one another; more are compared with one
FIGURES = {"learned": "learning_accuracy", "final": "average_accuracy", "forgot": "forgetting_chaudhry"}


def matched(frames: Frames) -> pd.DataFrame:
    """Return one row per pair of methods: differences in learning and in forgetting, and whether learning is matched.

    Columns `learned`, `final` and `forgot` hold an `Interval` each, the first minus the second, shares; `status` is
    matched, matched on average only, unmatched, or one seed where there is no interval.
    """
    values = figures_by_seed(frames.scores)
    return pd.DataFrame([_row(values, *pair) for pair in compared_labels(frames)])


def difference(values: pd.DataFrame, figure: str, one: str, other: str) -> Interval:
    """Return label `one` minus label `other` of a figure, paired over seeds; `values` is `tables.figures_by_seed`'s."""
    by_label = values[values["figure"] == figure].pivot(index="seed", columns="label", values="value")
    return t_interval(by_label[one] - by_label[other]).of_difference(continual.FIGURES[figure].unit)


def compared_labels(frames: Frames) -> Iterator[tuple[str, str]]:
    """Yield pairs of methods that share suite, order and start; a control that updates nothing is left out.

    More than FEW are each compared with the first method whose kind is OPD, or with the first where there is none.
    """
    settings: dict[tuple[str, str, str], list[str]] = {}
    kinds = {label: run.manifest.kind for run, label in frames.labelled}
    for run, label in frames.labelled:
        group = settings.setdefault((run.suite, run.order, run.start), [])
        if not run.manifest.control and label not in group:
            group.append(label)
    for labels in filter(None, settings.values()):
        if len(labels) <= FEW:
            yield from ((later, earlier) for earlier, later in combinations(labels, 2))
        else:
            first = next((label for label in labels if kinds[label] == "opd"), labels[0])
            yield from ((label, first) for label in labels if label != first)


def _row(values: pd.DataFrame, one: str, other: str) -> dict[str, object]:
    found = {name: difference(values, figure, one, other) for name, figure in FIGURES.items()}
    status = how_matched(found["learned"]) if found["learned"].seeds > 1 else SINGLE
    return {"label": one, "against": other, "seeds": found["learned"].seeds, "status": status, **found}
