"""Count items whose answer changed from right to wrong (lost) or from wrong to right (gained) (arXiv 2510.17776).

Each comparison is between two stages of one run: every stage with the one before it; a task's own stage with the end, which
shows what was forgotten; and the start with the end. An item with several answers is right where all of them are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from harness.rundir.reader import IDENTITY, identity
from harness.stats.by_item import by_item
from harness.stats.intervals import t_interval
from harness.stats.significance import Flips
from reports.data.frames import Frames

STAGE, SINCE_OWN, WHOLE = "over the stage", "since its own stage", "from the start"
CELL = ["task", "kind", "before", "after"]
ADJUSTED = ("forgotten", "adjusted_forgotten", "gained", "adjusted_gained")
HOW_LOST = ["wrong", "unparsed", "truncated"]


def compare_answers(frames: Frames) -> pd.DataFrame:
    """Return one row per run, comparison and item: the outcome of its answer before (`was`) and after (`now`)."""
    keys = [*IDENTITY, *CELL, "item_id", "was", "now"]
    if frames.answers.empty:
        return pd.DataFrame(columns=pd.Index(keys))
    by_run = frames.answers.groupby([*IDENTITY, "task"], sort=False)
    outcomes = frames.answers.assign(run=by_run.ngroup()).pivot(
        index=["run", "item_id"], columns="stage", values="outcome"
    )
    runs = by_run[["last", "own_stage"]].first().reset_index()
    found = list(_pairs(outcomes, runs["last"], runs["own_stage"]))
    if not found:  # only the start is evaluated
        return pd.DataFrame(columns=pd.Index(keys))
    rows = pd.concat(found).sort_values("run", kind="stable")
    placed = runs.take(rows["run"].to_numpy()).reset_index(drop=True)
    return pd.concat([placed, rows.reset_index(drop=True)], axis=1)[keys]


def count_flips(items: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and comparison: the numbers of items, lost, gained, and lost by the later outcome."""
    was, now = items["was"] == "correct", items["now"] == "correct"
    columns = {"items": 1, "lost": was & ~now, "gained": ~was & now}
    columns |= {f"lost_{how}": was & (items["now"] == how) for how in HOW_LOST}
    return items.assign(**columns).groupby([*IDENTITY, *CELL], sort=False)[list(columns)].sum().reset_index()


def by_item_table(frames: Frames, items: pd.DataFrame) -> pd.DataFrame:
    """Return a row per label and task that a later stage can affect: forgetting and backward transfer by item.

    Trained tasks are compared since their own stage, all others since the start. `forgotten`, `gained` and their `adjusted_`
    columns are intervals over seeds; `choices` is nan for answers in free text. See `harness.stats.by_item`.
    """
    others = {(*identity(run, label).values(), task) for run, label in frames.labelled for task in run.manifest.probes}
    whole = items[items["kind"] == WHOLE]
    places = whole[[*IDENTITY, "task"]].itertuples(index=False, name=None)
    of_other = pd.Series([place in others for place in places], whole.index, dtype=bool)
    kept = pd.concat([items[items["kind"] == SINCE_OWN], whole[of_other]])
    counted = count_flips(kept).assign(
        right=(kept["was"] == "correct").groupby([kept[key] for key in [*IDENTITY, *CELL]], sort=False).sum().to_numpy()
    )
    choices, rows = frames.choices, []
    for (label, task), runs in counted.groupby(["label", "task"], sort=False):
        number = choices.get(str(task), math.inf)
        found = [
            by_item(Flips(int(run["lost"]), int(run["gained"]), int(run["items"])), int(run["right"]), number)
            for run in runs.to_dict("records")
        ]
        shares = {name: t_interval([getattr(each, name) for each in found]).of_unit("%") for name in ADJUSTED}
        rows.append({"label": label, "task": task, "choices": number if math.isfinite(number) else math.nan, **shares})
    return pd.DataFrame(rows)


def select_changed(items: pd.DataFrame) -> pd.DataFrame:
    """Return the items that were lost or gained, with the column `change`."""
    was, now = items["was"] == "correct", items["now"] == "correct"
    return items[was != now].assign(change=np.where(was[was != now], "lost", "gained"))


def average_flips(counted: pd.DataFrame) -> pd.DataFrame:
    """Return per label and comparison the mean over seeds of each count as a share of the items."""
    names = ["lost", "gained", *(f"lost_{how}" for how in HOW_LOST)]
    by_seed = counted.assign(**{name: counted[name] / counted["items"] for name in names})
    groups = by_seed.groupby(["label", "adapter", *CELL], sort=False)
    return groups.agg({**dict.fromkeys(names, "mean"), "items": "max", "seed": "nunique"}).reset_index()


def _pairs(outcomes: pd.DataFrame, last: pd.Series, own: pd.Series) -> Iterator[pd.DataFrame]:
    """Yield one frame of items per comparison; `outcomes` has a row per run and item, `last` and `own` a value per run."""
    run, stages = outcomes.index.get_level_values("run"), range(1, int(last.max()) + 1)
    comparisons = [(STAGE, stage - 1, stage, last >= stage) for stage in stages]
    later = [(before, after) for before in stages for after in stages if before < after]
    comparisons += [(SINCE_OWN, before, after, (own == before) & (last == after)) for before, after in later]
    comparisons += [(WHOLE, 0, stage, last == stage) for stage in stages]
    for kind, before, after, having in comparisons:
        if before in outcomes and after in outcomes:
            both = outcomes.loc[having.to_numpy()[run], [before, after]].set_axis(["was", "now"], axis=1).dropna()
            yield both.reset_index().assign(kind=kind, before=before, after=after)
