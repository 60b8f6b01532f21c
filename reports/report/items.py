"""The pages of answers: every item of a task with every run's answers after each stage, as data for the page's script.

A page holds all runs of a task as long as its data are small enough for a browser; more runs get further pages. Each text is
stored once, however many runs and stages gave the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pandas as pd
from markupsafe import Markup

from harness.rundir.reader import IDENTITY, RunDir
from harness.terminal.sanitize import show_hidden
from reports.data.flips import SINCE_OWN, STAGE, WHOLE, select_changed
from reports.data.frames import Frames
from reports.document.blocks import Answers

FOLDER = "items"
PAGE_CHARACTERS = 8_000_000  # of answers on one page, repeated ones included
LONGEST = 4_000  # characters of one text on a page
EXAMPLE_LONGEST = 1_200  # characters of one text on the report's own page
COLUMNS = ["item_id", "prompt", "target", "response", "outcome"]
KINDS = {
    STAGE: "over stage {after}",
    SINCE_OWN: "from its own stage to the end",
    WHOLE: "from the start to the end",
}


@dataclass(frozen=True)
class ItemsPage:
    """A page: its path below the report's folder, its title (task and profile), its runs' labels, and its data as JSON."""

    path: str
    title: str
    labels: tuple[str, ...]
    data: Markup


@dataclass(frozen=True)
class TaskItems:
    """A task's pages, how often its answers changed between right and not right, and one example of a change.

    `further` are the pages of each evaluation profile after the first one.
    """

    task: str
    pages: tuple[ItemsPage, ...]
    further: dict[str, tuple[ItemsPage, ...]]
    changed: int
    example: Answers | None

    def link(self, label: str, stage: int) -> str | None:
        """Return the address of a method's answers after a stage; None where none of them were kept."""
        page = next((page for page in self.pages if label in page.labels), None)
        return None if page is None else f"{page.path}#{urlencode({'method': label, 'stage': stage})}"


def task_items(frames: Frames, compared: pd.DataFrame) -> Iterator[TaskItems]:
    """Yield the pages of each task that has stored answers, tasks in order; `compared` is `flips.compare_answers`'s."""
    changes = select_changed(compared)
    profiles = [
        (profile, shown, shown.answered_tasks) for profile in frames.profiles if (shown := frames.under(profile))
    ]
    for task in frames.answered_tasks:
        samples = frames.samples(task, COLUMNS)
        changed = changes[changes["task"] == task]
        further = {
            profile: tuple(_pages(shown, task, shown.samples(task, COLUMNS), f"{task}@{profile}"))
            for profile, shown, answered in profiles
            if task in answered
        }
        yield TaskItems(
            task, tuple(_pages(frames, task, samples, task)), further, len(changed), _example(samples, changed)
        )


def _pages(frames: Frames, task: str, samples: pd.DataFrame, cell: str) -> Iterator[ItemsPage]:
    """Yield the pages of a cell: runs in their order, as many on a page as PAGE_CHARACTERS allows, at least one."""
    keys = _keys(samples)
    sizes = samples["response"].astype(str).str.len().clip(upper=LONGEST).groupby(keys, sort=False).sum().to_dict()
    shares: list[list[tuple[RunDir, str]]] = []
    size = 0
    for run, label in frames.labelled:
        if (here := sizes.get(_key(run, label))) is None:
            continue
        if not shares or size + here > PAGE_CHARACTERS:
            shares.append([])
            size = 0
        shares[-1].append((run, label))
        size += int(here)
    for number, share in enumerate(shares, start=1):
        rows = samples[keys.isin([_key(*each) for each in share])]
        labels = tuple(dict.fromkeys(label for _, label in share))
        name = cell if number == 1 else f"{cell}-{number}"
        title = f"{task}, profile {frames.profile}" if frames.profile else task
        yield ItemsPage(f"{FOLDER}/{name}.html", title, labels, _data(task, share, rows))


def _data(task: str, share: Sequence[tuple[RunDir, str]], rows: pd.DataFrame) -> Markup:
    """Return the JSON for the page's script: texts, outcomes, items, and each run's answers by stage and item.

    A run's stage is a list over items. An item's entry is `[text, outcome, text, outcome, ...]`, one pair per answer, as
    indices into `texts` and `outcomes`; it is null where the run has no answer.
    """
    rows = rows.reset_index(drop=True)
    columns = rows[["prompt", "target", "response"]].fillna("").astype(str)
    places, texts = pd.factorize(pd.concat([columns[name] for name in columns]))
    prompts, targets, responses = places.reshape(3, len(rows))
    asked = pd.MultiIndex.from_arrays([rows["item_id"].astype(str), prompts, targets])
    item_of, items = pd.factorize(asked)
    outcome_of, outcomes = pd.factorize(rows["outcome"].astype(object))
    answers: dict[tuple[str, int], list[list[int] | None]] = {}
    places_of = zip(_keys(rows), rows["stage"], item_of, responses, outcome_of, strict=True)
    for run, stage, item, text, outcome in places_of:
        of_stage = answers.setdefault((run, int(stage)), [None] * len(items))
        entry = of_stage[item] = of_stage[item] or []
        entry += [int(text), int(outcome)]
    runs = [
        {
            "method": label,
            "seed": run.seed,
            "own": next((number for number, tasks in enumerate(run.trains, start=1) if task in tasks), 0),
            "names": ["start", *(f"after stage {number}, {name}" for number, name in enumerate(run.stages, start=1))],
            "answers": {str(stage): found for (key, stage), found in answers.items() if key == _key(run, label)},
        }
        for run, label in share
    ]
    data = {
        "texts": [show_hidden(cut_text(str(text))) for text in texts],
        "outcomes": [str(outcome) for outcome in outcomes],
        "items": [[show_hidden(str(name)), int(prompt), int(target)] for name, prompt, target in items],
        "runs": runs,
    }
    return _inert(data)


def _inert(data: Any) -> Markup:
    """Return JSON that is safe inside a page: no text in it can close its element or open another."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _example(samples: pd.DataFrame, changed: pd.DataFrame) -> Answers | None:
    """Return a changed answer: best one lost since the task's own stage, else one lost, else any; None without changes."""
    if changed.empty:
        return None
    rank = (changed["change"] != "lost") * 2 + (changed["kind"] != SINCE_OWN)
    row = changed.iloc[int(rank.to_numpy().argmin())]
    same = (samples[IDENTITY] == row[IDENTITY]).all(axis=1) & (samples["item_id"] == row["item_id"])
    # Of several answers the first that is not right, as in `Frames.answers`.
    found = samples[same].assign(right=samples["outcome"] == "correct").sort_values("right", kind="stable")
    before, after = (found[found["stage"] == row[when]].iloc[0] for when in ("before", "after"))
    comparison = KINDS[str(row["kind"])].format(after=row["after"])
    return Answers(
        title=f"{str(row['change']).capitalize()} {comparison}: {row['label']}, seed {row['seed']}",
        prompt=cut_text(str(before["prompt"]), EXAMPLE_LONGEST),
        target=cut_text(str(before["target"]), EXAMPLE_LONGEST),
        before=cut_text(str(before["response"]), EXAMPLE_LONGEST),
        after=cut_text(str(after["response"]), EXAMPLE_LONGEST),
        before_title=f"{_stage(int(row['before']))}: {_one_line(row['was'])}",
        after_title=f"{_stage(int(row['after']))}: {_one_line(row['now'])}",
    )


def _stage(stage: int) -> str:
    return f"after stage {stage}" if stage else "at the start"


def _one_line(value: object) -> str:
    """Return a text in one line: a line break would end the block of code that a Markdown page shows it in."""
    return " ".join(str(value).split())


def _keys(samples: pd.DataFrame) -> pd.Series:
    return samples["label"].astype(str) + "\n" + samples["seed"].astype(str)


def _key(run: RunDir, label: str) -> str:
    return f"{label}\n{run.seed}"


def cut_text(text: str, longest: int = LONGEST) -> str:
    """Return a text, cut after `longest` characters with a note on how many are left out."""
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]} … ({left:,} more characters)"
