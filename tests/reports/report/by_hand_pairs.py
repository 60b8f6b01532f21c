"""The paired differences of a report's headline, recomputed from the run directories, and the drift's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tests.reports.report.by_hand import Runs, figure_by_seed, percent, t_interval

Found = tuple[float, float, float, int]
LEARNED, FORGOT, FINAL = "learning_accuracy", "forgetting_chaudhry", "average_accuracy"


def headline_numbers(runs: Runs) -> Iterator[tuple[str, str, list[str]]]:
    """Yield base, other and the numbers of their sentence: each method against the first of its order and start.

    Controls have no sentence.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for m in runs.manifests:
        if m["kind"] != "none":
            groups.setdefault((m["order"], m["start"]), []).append(m["label"])
    for labels in groups.values():
        base, *others = dict.fromkeys(labels)
        for other in others:
            found = [bounded(difference(runs, base, other, name), name) for name in (LEARNED, FORGOT, FINAL)]
            yield base, other, [number for each in found if not np.isnan(each[0]) for number in written(each)]


def bounded(found: Found, name: str) -> Found:
    """Return a difference with its interval cut to the possible range of a difference of scores, or of changes."""
    value, low, high, seeds = found
    most = 2.0 if name == FORGOT else 1.0
    return value, max(low, -most), min(high, most), seeds


def written(found: Found) -> list[str]:
    """Return a difference as the page writes it: its size, and its interval in the direction of the difference."""
    value, low, high, seeds = found
    low, high = (low, high) if value >= 0 else (-high, -low)
    return [percent(abs(value)), *([f"[{percent(low)},\u00a0{percent(high)}]"] if seeds > 1 else [])]


def difference(runs: Runs, base: str, other: str, name: str) -> Found:
    """Other minus base with the interval for another seed and other items; for one seed the t interval over its items.

    Tasks are strata. The variances of the mean by seed, by item and by both are mean squares of an analysis of variance. Items
    that do not differ more than seed and item leave over (an F test at 25 %) have no part of their own. Where seeds differ
    more than that, the interval is at least as wide as the t interval over seeds. Where they differ more than twice that, the
    degrees of freedom are at most those for 2.5 times the part by seeds.
    """
    by_seed = (figure_by_seed(runs, other, name) - figure_by_seed(runs, base, name)).dropna()
    tables = [table / len(found) for found in [_items(runs, base, other, name)] for table in found]
    if not len(by_seed) or not tables:
        return t_interval(by_seed)
    seeds, item, both = len(by_seed), 0.0, 0.0
    for table in tables:
        n = len(table)
        left = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        item += float(table.mean(axis=1).var(ddof=1)) / n
        both += float((left**2).sum()) / (n * (n - 1) * seeds * (seeds - 1)) if seeds > 1 else 0.0
    df, between = sum(len(table) - 1 for table in tables), float(by_seed.var()) / seeds if seeds > 1 else 0.0
    variance = max(between + item - both, between, item)
    seeds_vary = between > both
    if both and between > 1e-18 and item / both < stats.f.ppf(0.75, df, df * (seeds - 1)):
        variance, item, both = between, 0.0, 0.0
    if variance < 1e-18:
        return float(by_seed.mean()), float(by_seed.mean()), float(by_seed.mean()), 2
    if seeds > 1:
        counted = [between, 2.5 * between] if between > 2 * both else [between]
        df = min(
            max(part + item - both, part, item) ** 2
            / (part**2 / (seeds - 1) + item**2 / df + both**2 / (seeds - 1) / df)
            for part in counted
        )
    half = stats.t.ppf(0.975, df) * variance**0.5
    if seeds > 1 and seeds_vary:
        half = max(half, stats.t.ppf(0.975, seeds - 1) * between**0.5)
    return float(by_seed.mean()), float(by_seed.mean() - half), float(by_seed.mean() + half), 2


def _items(runs: Runs, base: str, other: str, name: str) -> list[np.ndarray]:
    """By task the differences (items, seeds): of scores after the own stage or at the end, or of drops from the best."""
    both = [(b, o) for b in runs.of(base) for o in runs.of(other) if b["seed"] == o["seed"]]
    last = len(both[0][0]["stages"])
    found = []
    for task, own in both[0][0]["own"].items():
        if name == LEARNED:
            sides = [[_by_item(runs, m, task, own) for m in pair] for pair in both]
        elif name == FINAL:
            sides = [[_by_item(runs, m, task, last) for m in pair] for pair in both]
        elif own < last:
            sides = [[_drop(runs, m, task, own, last) for m in pair] for pair in both]
        else:
            continue
        found.append(np.stack([(o - b).to_numpy() for b, o in sides], axis=1))
    return found


def _by_item(runs: Runs, m: dict[str, Any], task: str, stage: int) -> pd.Series:
    return runs.answers_of(m, stage, task).groupby("item_id", sort=False)["score"].mean()


def _drop(runs: Runs, m: dict[str, Any], task: str, own: int, last: int) -> pd.Series:
    best = max(range(own, last), key=lambda stage: runs.score(m, stage, task))
    return _by_item(runs, m, task, best) - _by_item(runs, m, task, last)


def drops(runs: Runs) -> pd.DataFrame:
    """The drift's rows after a stage, with how far the task's score lies below its best so far."""
    rows = runs.drift[runs.drift["stage"] > 0].to_dict("records")
    by_label = {(m["label"], m["seed"]): m for m in runs.manifests}
    for row in rows:
        m = by_label[row["label"], row["seed"]]
        so_far = [runs.score(m, stage, row["task"]) for stage in range(row["stage"] + 1)]
        row["forgot"] = max(so_far) - so_far[-1]
    return pd.DataFrame(rows)
