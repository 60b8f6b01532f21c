"""Answers that turned from right to wrong (lost) or from wrong to right (gained), on the same items (arXiv 2510.17776).

Three comparisons, each between two stages of one run: every stage with the one before it, a task's own stage with the end,
which is what forgetting takes, and the start with the end. Where an item has several answers it is right if all are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from harness.stats import Flips
from reports.frames import IDENTITY, Frames

STAGE, SINCE_OWN, WHOLE = "over the stage", "since its own stage", "from the start"
CELL = ["task", "kind", "before", "after"]
HOW_LOST = ["wrong", "unparsed", "truncated"]


def compared(frames: Frames) -> pd.DataFrame:
    """Return one row per run, comparison and item with what became of its answer: `was` and `now`, names of outcomes."""
    parts = [part for _, answers in frames.answers.groupby([*IDENTITY, "task"], sort=False) for part in _of(answers)]
    keys = [*IDENTITY, *CELL, "item_id", "was", "now"]
    return pd.concat(parts, ignore_index=True)[keys] if parts else pd.DataFrame(columns=pd.Index(keys))


def count(items: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and comparison: items, lost and gained, the lost by what they became, and McNemar's p value."""
    was, now = items["was"] == "correct", items["now"] == "correct"
    columns = {"items": 1, "lost": was & ~now, "gained": ~was & now}
    columns |= {f"lost_{how}": was & (items["now"] == how) for how in HOW_LOST}
    table = items.assign(**columns).groupby([*IDENTITY, *CELL], sort=False)[list(columns)].sum().reset_index()
    tests = [Flips(lost, gained, n).p_value for lost, gained, n in table[["lost", "gained", "items"]].to_numpy()]
    return table.assign(p_value=tests)


def changed(items: pd.DataFrame) -> pd.DataFrame:
    """Return the items that were lost or gained, with the column `change`."""
    was, now = items["was"] == "correct", items["now"] == "correct"
    return items[was != now].assign(change=np.where(was[was != now], "lost", "gained"))


def shares(counted: pd.DataFrame) -> pd.DataFrame:
    """Return per label and comparison the mean over seeds of each count as a share of the items."""
    names = ["lost", "gained", *(f"lost_{how}" for how in HOW_LOST)]
    by_seed = counted.assign(**{name: counted[name] / counted["items"] for name in names})
    groups = by_seed.groupby(["label", "adapter", *CELL], sort=False)
    return groups.agg({**dict.fromkeys(names, "mean"), "items": "max", "seed": "nunique"}).reset_index()


def _of(answers: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the comparisons of one run and task."""
    first = answers.iloc[0]
    last, own = int(first["last"]), int(first["own_stage"])
    wide = answers.pivot(index="item_id", columns="stage", values="outcome")
    pairs = [(STAGE, stage - 1, stage) for stage in range(1, last + 1)]
    pairs += [(SINCE_OWN, own, last)] * (0 < own < last) + [(WHOLE, 0, last)]
    for kind, before, after in pairs:
        if before in wide and after in wide:
            both = wide[[before, after]].set_axis(["was", "now"], axis=1).dropna().reset_index()
            where = {"task": first["task"], "kind": kind, "before": before, "after": after}
            yield both.assign(**{key: first[key] for key in IDENTITY}, **where)
