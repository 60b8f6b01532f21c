"""The paired differences of a report's headline, recomputed from the run directories, and the drift's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tests.reports.by_hand import Runs, figure_by_seed, percent, t_interval

Found = tuple[float, float, float, int]
LEARNED, FORGOT = "learning_accuracy", "forgetting_chaudhry"


def headline_numbers(runs: Runs) -> Iterator[tuple[str, str, list[str]]]:
    """Yield base, other and the numbers of their sentence: each method against the first of its order and start.

    Controls have no sentence.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for m in runs.manifests:
        if m["adapter"] != "none":
            groups.setdefault((m["order"], m["start"]), []).append(m["label"])
    for labels in groups.values():
        base, *others = dict.fromkeys(labels)
        for other in others:
            found = [difference(runs, base, other, name) for name in (LEARNED, FORGOT)]
            yield base, other, [number for each in found if not np.isnan(each[0]) for number in written(each)]


def written(found: Found) -> list[str]:
    """Return a difference as the page writes it: its size, and its interval in the direction of the difference."""
    value, low, high, seeds = found
    low, high = (low, high) if value >= 0 else (-high, -low)
    return [percent(abs(value)), *([f"[{percent(low)},\u00a0{percent(high)}]"] if seeds > 1 else [])]


def difference(runs: Runs, base: str, other: str, name: str) -> Found:
    """Other minus base: the t interval over seeds, for one seed the t interval over items."""
    by_seed = (figure_by_seed(runs, other, name) - figure_by_seed(runs, base, name)).dropna()
    if len(by_seed) != 1:
        return t_interval(by_seed)
    tasks = _items(runs, base, other, name)
    total, overall = sum(map(len, tasks)), float(np.mean([task.mean() for task in tasks]))
    scaled = [(task - task.mean()) * total / (len(tasks) * len(task)) + overall for task in tasks]
    pooled = np.concatenate(scaled)
    low, high = stats.t.interval(0.95, len(pooled) - 1, loc=overall, scale=stats.sem(pooled))
    return overall, float(low), float(high), 2


def _items(runs: Runs, base: str, other: str, name: str) -> list[np.ndarray]:
    """By task the items' differences, mean over seeds: of scores after the own stage, or of drops from the best to the end."""
    both = [(b, o) for b in runs.of(base) for o in runs.of(other) if b["seed"] == o["seed"]]
    last = len(both[0][0]["stages"])
    found = []
    for task, own in both[0][0]["own"].items():
        if name == LEARNED:
            sides = [[_by_item(runs, m, task, own) for m in pair] for pair in both]
        elif own < last:
            sides = [[_drop(runs, m, task, own, last) for m in pair] for pair in both]
        else:
            continue
        found.append(np.mean([(o - b).to_numpy() for b, o in sides], axis=0))
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
