"""Stored answers graded anew: the task's present filter and `process_results`, and nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from harness.config.base import digest
from harness.errors import TaskError
from harness.evaluation.cell_cache import CellResult
from harness.evaluation.scoring import graded_row, numbered_ids, summarise
from harness.lmeval.task import Task
from harness.rundir.schema import EarlierGrade, Keys, Regrading


def regrade(task: Task, docs: Sequence[dict[str, Any]], stored: CellResult, keys: Keys) -> CellResult:
    """Return a cell with the answers of `stored` and the grades that `task` gives them now.

    `docs` are the task's test documents of today, in their order; `regraded` in the summary says what was before.
    """
    before = stored.summary
    _refuse_other_questions(task, docs, stored)
    samples, grades = _graded_samples(task, docs, stored.samples)
    seed = -1 if before.seed is None else before.seed
    summary = summarise(task, samples, grades, keys, before.weights, seed, before.seconds)
    origin = EarlierGrade(metric=before.metric, score=before.score, grading=before.keys.grading)
    regraded = Regrading(when=datetime.now(UTC).isoformat(), grader=task.metric, before=origin)
    found = {"questions": questions_digest(task, docs), "regraded": regraded}
    return CellResult(summary.model_copy(update=found), samples)


def questions_digest(task: Task, docs: Sequence[dict[str, Any]]) -> str:
    """Return the digest of what documents ask, in their order, which says later whether stored answers are theirs."""
    return digest([str(task.task.doc_to_text(doc)) for doc in docs])


def _graded_samples(
    task: Task, docs: Sequence[dict[str, Any]], samples: pd.DataFrame
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return the rows with their new grades, and each item's first grades as the task's grader gave them."""
    each, ids = len(samples) // len(docs), numbered_ids(docs)
    rows, first = list[dict[str, Any]](), list[dict[str, Any]]()
    for position, answer in enumerate(samples.to_dict("records")):
        index, number = divmod(position, each)
        doc = docs[index]
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


def _refuse_other_questions(task: Task, docs: Sequence[dict[str, Any]], stored: CellResult) -> None:
    """Raise `TaskError` where the answers were given to other questions; cells without a digest of them hold the prompts."""
    prompts = stored.samples.drop_duplicates("item_id")["prompt"]
    if len(prompts) != len(docs):
        raise TaskError(
            f"task {task.name}: {len(prompts)} items have stored answers and its test split has {len(docs)} now; answers are "
            "graded against the items they were asked about, so evaluate the checkpoint again"
        )
    asked = stored.summary.questions
    if asked is None:
        same = all(str(task.task.doc_to_text(doc)).strip() in prompt for doc, prompt in zip(docs, prompts, strict=True))
    else:
        same = asked == questions_digest(task, docs)
    if not same:
        raise TaskError(
            f"task {task.name}: stored answers were given to other questions than the items in their places ask now; the "
            "records or the template changed, so evaluate the checkpoint again"
        )
