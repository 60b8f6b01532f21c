"""Try one item of a task before a run: render its prompt, and grade its reference and wrong copies of it.

A task that passes does not fail in its first stage or after the start's evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.lm.chat import Renderer
from harness.lmeval.failures import describe_splits
from harness.lmeval.task import Task

EXAMPLES = 200  # few-shot prompts of each split that are checked
SHARED = 0.75  # share of the items below which the number of distinct targets is warned of


@dataclass(frozen=True)
class GradeCheck:
    """The scores of a reference and of spoiled copies of it; `reference` must be 1 and all of `spoiled` 0."""

    prompt: str
    target: str
    reference: float
    spoiled: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the grader tells right from wrong."""
        return self.reference == 1 and all(score == 0 for score in self.spoiled.values())


def try_task(task: Task, renderer: Renderer) -> dict[str, GradeCheck]:
    """Render one prompt of each split, grade its reference, and return the results by split.

    The result is empty for a task that is scored by likelihoods. Raises `TaskError` for a prompt that cannot be rendered, a
    grader that fails, and a metric that cannot be a score.
    """
    docs = {"evaluation": task.test_docs(1)[0]}
    if not task.generates:
        task.asked([docs["evaluation"]], renderer)
        task.score(task.grade_even(docs["evaluation"], renderer))
        return {}
    if task.has_training_items:
        docs = {"training": task.training_docs(1)[0], **docs}
    return {split: check_grader(task, doc, renderer) for split, doc in docs.items()}


def check_grader(task: Task, doc: dict[str, Any], renderer: Renderer) -> GradeCheck:
    """Grade an item's reference and spoiled copies of it."""
    target = task.training_target(doc)
    answers = {"reference": target, "empty": "", "changed": spoil(target)}
    scores = {name: task.score(task.grade(doc, answer)) for name, answer in answers.items()}
    return GradeCheck(task.render(doc, renderer), target, scores.pop("reference"), scores)


def spoil(target: str) -> str:
    """Return a wrong copy of a reference: every digit is raised by one, and a last word without digits is changed.

    The last word usually holds the answer: in a worked solution that ends in a box with pi, changed digits would not be wrong.
    """
    raised = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), target)
    if raised == target:
        return _changed_words(target) + "x"
    *_, last = re.finditer(r"\S*[A-Za-z0-9]\S*", raised)
    if re.search(r"\d", last[0]):
        return raised
    return raised[: last.start()] + _changed_words(last[0]) + raised[last.end() :]


def _changed_words(text: str) -> str:
    return re.sub(r"[A-Za-z]+", lambda word: word[0][::-1] + "x", text)


def describe_items(task: Task, limit: int | None = None) -> str:
    """Return as text how many test items a task has, how many are independent, and its records' splits and fields."""
    docs = task.test_docs(limit)
    independent = len(set(map(task.cluster, docs)))
    return f"{len(docs)} test items, {independent} independent; records: {describe_splits(task.lmeval)}"


def item_warnings(task: Task, limit: int | None = None) -> Iterator[str]:
    """Yield warnings about a task's items: many test items share targets, or prompts show their own answer."""
    docs = task.test_docs(limit)
    targets = len(set(map(task.training_target, docs))) if task.generates else len(docs)
    if task.settings.cluster is None and targets < SHARED * len(docs):
        yield (
            f"{len(docs)} test items have {targets} distinct targets: items that share one may be right or wrong together, "
            "and intervals would be too narrow; name what they share in metadata.harness.cluster"
        )
    splits = {"test": docs[:EXAMPLES], "training": task.training_docs(EXAMPLES) if task.has_training_items else []}
    for split, items in splits.items():
        if own := task.own_examples(items):
            yield (
                f"{own} of the first {len(items)} {split} prompts show the item's own answer as a few-shot example: take the "
                "examples from another split (fewshot_split), or write them out (fewshot_config.samples)"
            )
