"""One row of a comparison: a quantity of one method against the baseline, and the CSV records of such rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from harness.stats.intervals import NOTHING
from harness.stats.learning.matching import MATCHED
from harness.stats.paired import Difference
from harness.stats.score_matrix import Figure
from harness.stats.significance import holm, p_value
from reports.data.calibration import ProfileFigure
from reports.data.learning_curves import CurveFigure
from reports.data.methods import TrainingFigure

AVERAGE = "average"
Quantity = Figure | TrainingFigure | CurveFigure | ProfileFigure


@dataclass(frozen=True)
class ComparisonRow:
    """One quantity of one method against the baseline.

    `task` is a task's name, AVERAGE where the quantity is also shown by task, else empty. `learning` says for retention
    whether learning is matched, and is empty for other quantities. `adjusted` is the p value after Holm. `noise` is the
    standard deviation between evaluations of the same weights, 0..1.
    """

    quantity: Quantity
    task: str
    base: str
    other: str
    difference: Difference
    learning: str = ""
    adjusted: float = math.nan
    noise: float = math.nan

    def __post_init__(self) -> None:
        object.__setattr__(self, "difference", self.difference.of_unit(self.quantity.unit))

    @property
    def title(self) -> str:
        """What a reader calls the row."""
        return f"{self.quantity.short}: {self.task}" if self.task else self.quantity.short

    @property
    def judged(self) -> bool:
        """Whether the row is tested: retention is tested only at matched learning."""
        return self.learning in ("", MATCHED)


def with_holm(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Adjust the p values of the judged rows; a quantity's tasks form one family, its averages another."""
    families: dict[tuple[str, bool], list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault((row.quantity.name, row.task in ("", AVERAGE)), []).append(place)
    adjusted: dict[int, float] = {}
    for places in families.values():
        p = holm([rows[place].difference.p_of_several if rows[place].judged else math.nan for place in places])
        adjusted |= dict(zip(places, p, strict=True))
    return [replace(row, adjusted=adjusted[place]) for place, row in enumerate(rows)]


def comparison_table(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """Return one line per row with every figure in full precision; scores in 0..1, entropy in nats."""
    return pd.DataFrame([_record(row) for row in rows])


def comparison_table_by_seed(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """Return one line per row and seed: the difference, its interval over items, and the items lost and gained."""
    return pd.DataFrame([record for row in rows for record in _seed_records(row)])


def _record(row: ComparisonRow) -> dict[str, object]:
    result = row.difference
    return {
        "baseline": row.base,
        "method": row.other,
        "measure": row.quantity.short,
        "figure": row.quantity.name,
        "task": row.task,
        "unit": "share" if row.quantity.unit in ("%", "points") else row.quantity.unit,
        "formula": row.quantity.formula,
        "baseline_value": result.base,
        "method_value": result.other,
        "difference": result.interval.mean,
        "low": result.interval.low,
        "high": result.interval.high,
        "seeds_low": result.seeds.low,
        "seeds_high": result.seeds.high,
        "items_low": result.items.low,
        "items_high": result.items.high,
        "p": result.p if row.judged else math.nan,
        "p_holm": row.adjusted,
        "learning": row.learning,
        "lost": result.lost if result.flips else None,
        "gained": result.gained if result.flips else None,
        "detectable": result.detectable,
        "variance_seeds": result.variances.seeds,
        "variance_items": result.variances.items,
        "noise_floor": row.noise,
        "seeds": result.seeds.seeds,
        "items": result.item_count,
        "independent_items": result.clusters,
    }


def _seed_records(row: ComparisonRow) -> Iterator[dict[str, object]]:
    result = row.difference
    for place, (seed, change) in enumerate(result.by_seed.items()):
        items = result.items_by_seed.get(seed, NOTHING)
        turned = result.flips[place] if result.flips else None
        yield {
            "baseline": row.base,
            "method": row.other,
            "measure": row.quantity.short,
            "figure": row.quantity.name,
            "task": row.task,
            "seed": seed,
            "difference": change,
            "items_low": items.low,
            "items_high": items.high,
            "lost": turned.lost if turned else None,
            "gained": turned.gained if turned else None,
            "p_items": p_value(items),
        }
