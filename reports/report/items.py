"""One page per task with the answers that changed: prompt, expected answer and both answers side by side, with filters.

A page holds a limited number of them, taken in turn from every method, seed, comparison and direction, so that every filter
finds some; the page says how many there are in all. All answers are in the runs' samples.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.rundir.reader import IDENTITY
from reports.data.flips import SINCE_OWN, STAGE, WHOLE, select_changed
from reports.data.frames import Frames

PER_TASK, PER_REPORT = 300, 3_000
FOLDER = "items"
LONGEST = 1_200  # characters of one text on a page
KINDS = {
    STAGE: "over stage {after}",
    SINCE_OWN: "from its own stage to the end",
    WHOLE: "from the start to the end",
}
GROUP = ["label", "seed", "kind", "after", "change"]


@dataclass(frozen=True)
class Item:
    """A changed answer as the page shows it; texts are cut where they are very long."""

    label: str
    seed: int
    comparison: str
    change: str
    prompt: str
    target: str
    before: str
    after: str
    before_title: str
    after_title: str

    @property
    def title(self) -> str:
        """What happened to which run's answer."""
        return f"{self.change.capitalize()} {self.comparison}: {self.label}, seed {self.seed}"


@dataclass(frozen=True)
class TaskItems:
    """A task's changed answers: those that are shown, of how many."""

    task: str
    items: tuple[Item, ...]
    total: int

    @property
    def path(self) -> str:
        """The page's path below the report's folder."""
        return f"{FOLDER}/{self.task}.html"

    @property
    def example(self) -> Item | None:
        """An answer that was lost since the task's own stage, else over a stage, else any; None where none changed."""
        wanted = [("lost", KINDS[SINCE_OWN]), ("lost", ""), ("", "")]
        for change, comparison in wanted:
            found = [i for i in self.items if i.change.startswith(change) and i.comparison.startswith(comparison)]
            if found:
                return found[0]
        return None

    @property
    def counted(self) -> str:
        """How many are shown of how many, in a sentence."""
        if len(self.items) == self.total:
            return f"{self.total:,} changed answers, all shown."
        return (
            f"{len(self.items):,} of {self.total:,} changed answers are shown, taken in turn from every method, seed, "
            "comparison and direction. All answers are in the runs' samples.parquet."
        )


def task_items(frames: Frames, compared: pd.DataFrame) -> Iterator[TaskItems]:
    """Yield the changed answers of each task that has stored answers of two stages, tasks in order.

    `compared` is `flips.compared`'s.
    """
    changes = select_changed(compared)
    tasks = list(compared["task"].unique())
    room = min(PER_TASK, PER_REPORT // max(1, len(tasks)))
    for task in tasks:
        rows = changes[changes["task"] == task]
        chosen = in_turn(rows, room)
        yield TaskItems(task, tuple(_with_texts(frames, task, chosen)), len(rows))


def in_turn(rows: pd.DataFrame, room: int) -> pd.DataFrame:
    """Return at most `room` rows: the first of each group, then the second of each, and so on, in the order of the rows."""
    turn = rows.groupby(GROUP, sort=False).cumcount()
    return rows.loc[turn.sort_values(kind="stable").index[:room]].sort_index()


def _with_texts(frames: Frames, task: str, chosen: pd.DataFrame) -> Iterator[Item]:
    if chosen.empty:
        return
    texts = _texts(frames, task, set(chosen["item_id"]))
    for row in chosen.to_dict("records"):
        run = tuple(row[key] for key in IDENTITY)
        before, after = (texts[(*run, row[when], row["item_id"])] for when in ("before", "after"))
        yield Item(
            str(row["label"]),
            int(row["seed"]),
            KINDS[str(row["kind"])].format(after=row["after"]),
            str(row["change"]),
            cut_text(before["prompt"]),
            cut_text(before["target"]),
            cut_text(before["response"]),
            cut_text(after["response"]),
            f"{_stage(int(row['before']))}: {row['was']}",
            f"{_stage(int(row['after']))}: {row['now']}",
        )


def _texts(frames: Frames, task: str, items: set[str]) -> dict[tuple[Any, ...], dict[str, str]]:
    """Return the stored texts by run, stage and item: of several answers the first not right, as in `Frames.answers`."""
    keys = [*IDENTITY, "stage", "item_id"]
    samples = frames.samples(task, ["item_id", "prompt", "target", "response", "outcome"], items)
    samples = samples.assign(right=samples["outcome"] == "correct").sort_values("right", kind="stable")
    samples = samples.drop_duplicates(keys)
    columns = samples[["prompt", "target", "response"]].astype(str).to_dict("records")
    return {
        tuple(key): {str(name): text for name, text in row.items()}
        for key, row in zip(samples[keys].itertuples(index=False, name=None), columns, strict=True)
    }


def _stage(stage: int) -> str:
    return f"after stage {stage}" if stage else "at the start"


def cut_text(text: str, longest: int = LONGEST) -> str:
    """Return the beginning of a long text, and say how much is left out."""
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]} … ({left:,} more characters)"
