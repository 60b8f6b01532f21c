"""The rows of a comparison: measures, their paired differences, Holm's p values, and the tables that hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.stats.intervals import Interval, item_interval
from harness.stats.significance import holm
from reports.compare.paired import Difference
from reports.data.methods import Method
from reports.data.paired_cells import RunScores, Term

MARGIN = 0.05  # a share, of learning accuracy
MATCHED, ON_AVERAGE, UNMATCHED = "matched", "matched on average only", "unmatched"
AVERAGE = "average"
Terms = Callable[[Method, RunScores, int, str], list[Term]]


class Measure(NamedTuple):
    """A quantity that is compared: its name in tables, its formula, its unit, and whether learning must be matched."""

    name: str
    formula: str
    terms: Terms
    unit: str = "points"
    retention: bool = False


def how_matched(learned: Interval, margin: float = MARGIN) -> str:
    """Say whether the whole interval of a difference in learning lies within the margin, or the mean alone does."""
    if learned.low >= -margin and learned.high <= margin:
        return MATCHED
    return ON_AVERAGE if abs(learned.mean) <= margin else UNMATCHED


def _learned(method: Method, _: RunScores, last: int, task: str) -> list[Term]:
    own = {name: stage for name, stage in method.stage_of.items() if stage <= last}
    return [Term(name, stage) for name, stage in own.items() if task in (name, AVERAGE)]


def _final(method: Method, _: RunScores, last: int, task: str) -> list[Term]:
    trained = [name for name, stage in method.stage_of.items() if stage <= last]
    return [Term(name, last) for name in (trained if task == AVERAGE else [task])]


def _backward(method: Method, _: RunScores, last: int, task: str) -> list[Term]:
    return [Term(name, last, own) for name, own in method.stage_of.items() if own < last and task in (name, AVERAGE)]


def _forgotten(method: Method, evaluations: RunScores, last: int, task: str) -> list[Term]:
    """Return the drop from the best stage since a task's own, the best stage being that of the mean over items."""
    found = []
    for name, own in method.stage_of.items():
        if own < last and task in (name, AVERAGE):
            scores = [evaluations.score(Term(name, stage)) for stage in range(own, last)]
            found.append(Term(name, own + int(np.argmax(scores)), last))
    return found


LEARNED = Measure("learned", "R[j][j]", _learned)
FORGOTTEN = Measure("forgotten", "mean_{j<T} (max_{j≤l<T} R[l][j] − R[T][j]), Chaudhry", _forgotten, retention=True)
BACKWARD = Measure("BWT", "mean_{j<T} (R[T][j] − R[j][j])", _backward, retention=True)
ENTROPY = Measure("entropy", "mean over training steps", lambda *_: [], unit="nats")
FINAL = Measure("final score", "R[T][j]", _final)
SCORE = Measure("score", "R[i][j]", _final)


@dataclass(frozen=True)
class ComparisonRow:
    """One measure of one method beside the baseline; `learning` says whether it is matched, for retention alone."""

    measure: Measure
    task: str
    base: str
    other: str
    difference: Difference
    learning: str = ""
    adjusted: float = math.nan
    noise: float = math.nan

    @property
    def title(self) -> str:
        """What a reader calls the row."""
        return f"{self.measure.name}: {self.task}" if self.task else self.measure.name

    @property
    def judged(self) -> bool:
        """Whether a test may speak: retention does only at matched learning."""
        return self.learning in ("", MATCHED)


def with_holm(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Adjust the p values of the rows that may be judged, each measure's tasks (and, apart, its averages) a family."""
    families: dict[tuple[str, bool], list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault((row.measure.name, row.task in ("", AVERAGE)), []).append(place)
    adjusted: dict[int, float] = {}
    for places in families.values():
        p = holm([rows[place].difference.p if rows[place].judged else math.nan for place in places])
        adjusted |= dict(zip(places, p, strict=True))
    return [replace(row, adjusted=adjusted[place]) for place, row in enumerate(rows)]


def frame(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """Return one line per row with every figure in full precision; scores in 0..1, entropy in nats."""
    return pd.DataFrame([_record(row) for row in rows])


def frame_by_seed(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """Return one line per row and seed: the difference, its bootstrap interval over items, and the items that turned."""
    return pd.DataFrame([record for row in rows for record in _seed_records(row)])


def _record(row: ComparisonRow) -> dict[str, object]:
    found = row.difference
    return {
        "baseline": row.base,
        "method": row.other,
        "measure": row.measure.name,
        "task": row.task,
        "unit": "share" if row.measure.unit == "points" else row.measure.unit,
        "formula": row.measure.formula,
        "baseline_value": found.base,
        "method_value": found.other,
        "difference": found.seeds.mean,
        "low": found.seeds.low,
        "high": found.seeds.high,
        "items_low": found.items.low,
        "items_high": found.items.high,
        "p": found.p if row.judged else math.nan,
        "p_holm": row.adjusted,
        "learning": row.learning,
        "lost": found.lost if found.flips else None,
        "gained": found.gained if found.flips else None,
        "mcnemar_p": found.mcnemar,
        "detectable_seeds": found.detectable_seeds,
        "detectable_items": found.detectable_items,
        "variance_seeds": found.variances.seeds,
        "variance_items": found.variances.items,
        "noise_floor": row.noise,
        "seeds": found.seeds.seeds,
        "items": found.item_count,
    }


def _seed_records(row: ComparisonRow) -> Iterator[dict[str, object]]:
    found = row.difference
    for place, (seed, change) in enumerate(found.by_seed.items()):
        items = item_interval(found.items_by_seed[place]) if found.items_by_seed else None
        turned = found.flips[place] if found.flips else None
        yield {
            "baseline": row.base,
            "method": row.other,
            "measure": row.measure.name,
            "task": row.task,
            "seed": seed,
            "difference": change,
            "items_low": items.low if items else math.nan,
            "items_high": items.high if items else math.nan,
            "lost": turned.lost if turned else None,
            "gained": turned.gained if turned else None,
            "mcnemar_p": turned.p_value if turned else math.nan,
        }
