"""Stored answers graded anew: the task's present filter and `process_results`, and nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from harness.errors import TaskError
from harness.lmeval.keys import Keys
from harness.lmeval.scoring import graded_row, numbered_ids, summarise
from harness.lmeval.shared import Cell
from harness.lmeval.tasks import BenchTask


def regrade(task: BenchTask, docs: Sequence[dict[str, Any]], stored: Cell, keys: Keys) -> Cell:
    """Return a cell with the answers of `stored` and the grades that `task` gives them now.

    `docs` are the task's test documents of today, in their order; `regraded` in the summary says what was before.
    """
    samples, grades = _graded_samples(task, docs, stored.samples)
    before = stored.summary
    seconds = float(before.get("seconds", 0.0))
    summary = summarise(task, samples, grades, keys, before["weights"], before.get("seed", -1), seconds)
    origin = {"metric": before["metric"], "score": before["score"], "grading": before["keys"]["grading"]}
    return Cell(
        {**summary, "regraded": {"when": datetime.now(UTC).isoformat(), "grader": task.metric, "from": origin}}, samples
    )


def _graded_samples(
    task: BenchTask, docs: Sequence[dict[str, Any]], samples: pd.DataFrame
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return the rows with their new grades, and each item's first grades as the task's grader gave them."""
    items = samples["item_id"].nunique()
    if items != len(docs):
        raise TaskError(
            f"task {task.name}: {items} items have stored answers and its test split has {len(docs)} now; answers are graded "
            "against the items they were asked about, so evaluate the checkpoint again"
        )
    each, ids = len(samples) // items, numbered_ids(docs)
    rows, first = list[dict[str, Any]](), list[dict[str, Any]]()
    for position, answer in enumerate(samples.to_dict("records")):
        index, number = divmod(position, each)
        doc = docs[index]
        _refuse_another_question(task, doc, str(answer["prompt"]))
        facts = {
            "item_id": ids[index],
            "sample": number,
            "prompt": answer["prompt"],
            "target": str(task.task.doc_to_target(doc)),
            "response": answer["response"],
            "finish": answer["finish"],
            "tokens": answer["tokens"],
        }
        grades = task.grade(doc, str(answer["response"]))
        rows.append(graded_row(task, facts, grades))
        first += [grades] if number == 0 else []
    return pd.DataFrame(rows), first


def _refuse_another_question(task: BenchTask, doc: dict[str, Any], prompt: str) -> None:
    question = str(task.task.doc_to_text(doc)).strip()
    if question not in prompt:
        raise TaskError(
            f"task {task.name}: a stored answer was given to another question than the item in its place asks now "
            f"({question[:60]!r}); the records or the template changed, so evaluate the checkpoint again"
        )
