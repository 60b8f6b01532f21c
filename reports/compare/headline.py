"""The sentences a report opens with: which methods learned, forgot and ended with more or less than the first one.

Every number is a paired difference with its interval, under a profile that the sentence names. Where another profile reverses
its sign, a clause says so. With one seed the interval is over items, and the sentence says so. Less forgetting is claimed only
at matched learning. Where a number is missing, the sentence says what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.stats.continual import ACCURACY, BACKWARD, FORGETTING, LEARNING
from harness.stats.intervals import has_width, reverses
from harness.stats.learning.matching import MATCHED
from reports.compare.comparison import OTHER_LEARNING, OTHER_TASKS, Comparison, same_tasks
from reports.compare.final_scores import describe_against_start, format_bracket
from reports.compare.rows import ComparisonRow
from reports.data.frames import Frames
from reports.data.methods import Method, by_start, methods_of, over_tasks, tasks_of_all
from reports.data.setting_differences import describe_unlike
from reports.formatting import format_count, format_percent


def headline(frames: Frames) -> list[str]:
    """Return one sentence per method, against the first of its suite, order and start that is not a control."""
    groups = by_start(method for method in methods_of(frames) if not method.control)
    return [sentence for methods in groups.values() for sentence in headline_of(methods)]


def headline_of(methods: Sequence[Method]) -> list[str]:
    """Return one sentence per method after the first, against it, and one where more than the method differs."""
    unlike = [sentence for other in methods[1:] for sentence in describe_unlike(methods[0], other)]
    return [*(_sentence(methods[0], other) for other in methods[1:]), *unlike]


def sentences_of(compared: Comparison) -> list[str]:
    """Return the sentences of a finished comparison: each method against its baseline, and against its start."""
    found = [_compare(compared, method) for method in compared.methods[1:]]
    return [*found, *describe_against_start(compared.methods, compared.stage)]


def _sentence(base: Method, other: Method) -> str:
    if not base.by_seed.keys() & other.by_seed.keys():  # `compare` pairs single runs of different seeds, as asked
        return f"{other.name} and {base.name} have no seed in common, so they are not compared."
    return _compare(Comparison([base, other]), other)


def _compare(compared: Comparison, other: Method) -> str:
    base = compared.base
    rows = {row.quantity.name: row for row in compared.averages(other)}
    learned = rows.get(LEARNING.name)
    if learned is None and compared.share_tasks(other):
        return OTHER_LEARNING.format(base=base.name, other=other.name) + _end(rows.get(ACCURACY.name), other.name)
    if learned is None:
        return f"{other.name} and {base.name} were not trained on the same tasks, so no average of them is compared."
    if not learned.difference.seeds.seeds:
        return f"{other.name} and {base.name}: no seed has every trained task evaluated yet, so nothing is compared."
    lost = rows.get(FORGETTING.name)
    under = f"Under {base.profile} decoding " if base.frames.profile or base.first.manifest.profiles else ""
    parts = [f"{under}{other.name} learned {_amount(learned)} than {base.name}"]
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
    return (
        f"{' and '.join(parts)}; {_basis(learned)}.{_end(rows.get(ACCURACY.name))}{after}{_reversals(compared, other)}"
    )


def _end(row: ComparisonRow | None, name: str = "It") -> str:
    """Say where the method ends next to the baseline; nothing while no run has its last stage."""
    if row is None or not row.difference.seeds.seeds:
        return ""
    return f" {name} ends at {format_percent(row.difference.other)} %, {_amount(row)} than {row.base}."


def _reversals(compared: Comparison, other: Method) -> str:
    """Name the profiles under which a difference has the other sign, if either of the two intervals excludes zero.

    Both differences are over the tasks that both profiles evaluate.
    """
    found = []
    for profile in [name for name in compared.base.first.manifest.profile_names if name != compared.base.profile]:
        sides = [method.under(profile) for method in (compared.base, other)]
        if sides[0] is None or sides[1] is None:
            continue
        here = replace(compared, methods=[compared.base, other])
        there = replace(compared, methods=[side for side in sides if side is not None])
        tasks = tasks_of_all([*here.methods, *there.methods])
        left = ", ".join(task for task in compared.base.stage_of if task not in tasks)
        for figure, verb in ((LEARNING, "learned"), (ACCURACY, "ends with")):
            rows = [each.average(each.methods[-1], over_tasks(figure, tasks)) for each in (here, there)]
            if rows[0] and rows[1] and reverses(rows[0].difference.interval, rows[1].difference.interval, 1):
                without = f" without {left}, which has no such profile" if left else ""
                found.append(f"under {profile} decoding it {verb} {_amount(rows[1])}{without}")
    return f" The sign reverses: {'; '.join(found)}." if found else ""


def _amount(row: ComparisonRow, *, unit: bool = True) -> str:
    """Write a difference as "3.0 points more" or "less", with the interval in the direction of that word."""
    interval, more = row.difference.interval, row.difference.interval.mean >= 0
    bracket = format_bracket(interval, 1 if more else -1)
    return f"{format_percent(abs(interval.mean))}{' points' * unit} {'more' if more else 'less'}{bracket}"


def _counted(row: ComparisonRow, learned: ComparisonRow) -> str:
    """Say how many seeds a row covers, where the sentence names a different number."""
    seeds = row.difference.seeds.seeds
    return "" if seeds == learned.difference.seeds.seeds else f" (over {format_count(seeds, 'seed')})"


def _basis(row: ComparisonRow) -> str:
    """Say how many seeds and items an interval rests on, and whether it includes zero."""
    found = row.difference
    items = f", {format_count(found.item_count, 'item')}" if found.item_count else ""
    counted = f"{format_count(found.seeds.seeds, 'seed')}{items}"
    if found.seeds.seeds == 1:
        over = (
            "the bracket is over items of this seed alone" if has_width(found.interval, 1) else "this has no interval"
        )
        return f"{counted}, so {over} and says nothing about other seeds"
    zero = has_width(found.interval) and found.interval.low <= 0 <= found.interval.high
    paired = "" if found.by_seed else ", paired by items only"
    return f"{counted}{paired}{'; the difference in learning is not resolved from zero' * zero}"


def _unmatched(row: ComparisonRow, learned: ComparisonRow, margin: float) -> str:
    """Say why forgetting is not judged, and what was measured."""
    bound = f"±{100 * margin:g} points"
    one = row.difference.seeds.seeds == 1
    why = "one seed cannot show that learning matches" if one else f"learning is not shown to match within {bound}"
    return f" It forgot {_amount(row)}{_counted(row, learned)}, which is not judged: {why}."
