"""The sentence a report opens with: which methods learned and forgot more or less than the first one, and how sure that is.

Every number is a paired difference with its interval. With one seed the interval is over items, and the sentence says so; less
forgetting is claimed only at matched learning; where a number is missing, the sentence says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.stats.continual import BACKWARD, FORGETTING, LEARNING
from harness.stats.intervals import has_width
from harness.stats.matching import MATCHED
from reports.compare.comparison import OTHER_TASKS, Comparison, same_tasks
from reports.compare.rows import ComparisonRow
from reports.data.frames import Frames
from reports.data.methods import Method, methods_of
from reports.document.sentences import format_count, format_percent


def headline(frames: Frames) -> list[str]:
    """Return one sentence per method, against the first of its suite, order and start that is not a control."""
    groups: dict[tuple[str, str, str], list[Method]] = {}
    for method in methods_of(frames):
        if not method.control:
            run = method.first
            groups.setdefault((run.suite, run.order, run.start), []).append(method)
    return [sentence for methods in groups.values() for sentence in headline_of(methods)]


def headline_of(methods: Sequence[Method]) -> list[str]:
    """Return one sentence per method after the first, against it; none for a single method."""
    return [_sentence(methods[0], other) for other in methods[1:]]


def sentences_of(compared: Comparison) -> list[str]:
    """Return the sentences of a finished comparison, each method against its baseline."""
    return [_told(compared, method) for method in compared.methods[1:]]


def _sentence(base: Method, other: Method) -> str:
    compared = Comparison([base, other])
    if not compared.seeds(other):
        return f"{other.name} and {base.name} have no seed in common, so they are not compared."
    return _told(compared, other)


def _told(compared: Comparison, other: Method) -> str:
    base = compared.base
    rows = {row.quantity.name: row for row in compared.averages(other)}
    learned = rows.get(LEARNING.name)
    if learned is None:
        return f"{other.name} and {base.name} were not trained on the same tasks, so no average of them is compared."
    if not learned.difference.seeds.seeds:
        return f"{other.name} and {base.name}: no seed has every trained task evaluated yet, so nothing is compared."
    lost = rows.get(FORGETTING.name)
    parts = [f"{other.name} learned {_amount(learned)} than {base.name}"]
    after = ""
    if not same_tasks(compared.pairs(other, BACKWARD)):
        after = f" {OTHER_TASKS.format(base=base.name, other=other.name)}"
    elif lost is None:
        several = min(compared.last(base), compared.last(other)) > 1
        after = " Forgetting is not known yet." if several else ""
    elif lost.learning == MATCHED:
        parts.append(f"forgot {_amount(lost, unit=False)}{_counted(lost, learned)}")
    else:
        after = _unmatched(lost, learned, compared.margin)
    return f"{' and '.join(parts)}; {_basis(learned)}.{after}"


def _amount(row: ComparisonRow, *, unit: bool = True) -> str:
    """Write a difference as so many points more or less, its interval in the direction of that word."""
    interval = row.difference.interval
    mean, more = interval.mean, interval.mean >= 0
    low, high = (interval.low, interval.high) if more else (-interval.high, -interval.low)
    bracket = "" if math.isnan(low) else f" [{format_percent(low)},\u00a0{format_percent(high)}]"
    return f"{format_percent(abs(mean))}{' points' * unit} {'more' if more else 'less'}{bracket}"


def _counted(row: ComparisonRow, learned: ComparisonRow) -> str:
    """Say over how many seeds a row is, where the sentence counts others."""
    seeds = row.difference.seeds.seeds
    return "" if seeds == learned.difference.seeds.seeds else f" (over {format_count(seeds, 'seed')})"


def _basis(row: ComparisonRow) -> str:
    """Say what an interval rests on, and whether it leaves zero out."""
    found = row.difference
    items = f", {format_count(found.item_count, 'item')}" if found.item_count else ""
    counted = f"{format_count(found.seeds.seeds, 'seed')}{items}"
    if found.seeds.seeds == 1:
        over = "the bracket is over items of this seed alone" if found.item_count else "there is no interval"
        return f"{counted}, so {over} and says nothing about other seeds"
    zero = has_width(found.interval) and found.interval.low <= 0 <= found.interval.high
    return f"{counted}{'; the difference in learning is not resolved from zero' * zero}"


def _unmatched(row: ComparisonRow, learned: ComparisonRow, margin: float) -> str:
    """Say why forgetting is not judged, and what was measured."""
    bound = f"±{100 * margin:g} points"
    one = row.difference.seeds.seeds == 1
    why = "one seed cannot show that learning matches" if one else f"learning is not shown to match within {bound}"
    return f" It forgot {_amount(row)}{_counted(row, learned)}, which is not judged: {why}."
