"""Check that the fields that a task's file names are in its records, in every row of both splits.

lm-eval treats a `doc_to_text` that is not a field as a template. So without the field `prompt`, every prompt would be the word
"prompt"; a row where the field is null would have the prompt "None", or stop the evaluation midway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from lm_eval.utils import env

from harness.errors import TaskError
from harness.lmeval.failures import describe_splits
from harness.lmeval.task import Task

CONSTANT = ("doc_to_choice", "gen_prefix")  # keys whose value is often a constant text


def check_records(task: Task) -> None:
    """Raise `TaskError` for a field that the task's file names and a split lacks, or that is null in a row."""
    splits = dict(_splits(task))
    for key, value in _named(task):
        for split, rows in splits.items():
            for field in _fields(task, key, value, split, rows):
                _check_rows(task, key, field, split, rows)


def _named(task: Task) -> Iterator[tuple[str, str]]:
    """Yield the keys of the task's file whose values are fields or templates, with these values."""
    config, settings = task.config, task.settings
    keys = ["doc_to_text", "doc_to_choice", "gen_prefix"]
    if not callable(config.process_results):  # a function reads the document itself
        keys.append("doc_to_target")
    read_by_lmeval = {key: getattr(config, key) for key in keys}
    read_by_us = {f"metadata.harness.{name}": getattr(settings, name) for name in ("training_target", "cluster")}
    for key, value in {**read_by_lmeval, **read_by_us}.items():
        if isinstance(value, str) and value.strip():
            yield key, value


def _splits(task: Task) -> Iterator[tuple[str, Any]]:
    if task.has_training_items:
        yield str(task.config.training_split), task.lmeval.training_docs()
    yield str(task.config.test_split or task.config.validation_split), task.lmeval.eval_docs


def _fields(task: Task, key: str, value: str, split: str, rows: Any) -> list[str]:
    """Return the fields that a key's value prints in every row; raises `TaskError` for a field that the split lacks."""
    columns = _columns(rows)
    if value in columns:
        return [value]
    if "{" in value:
        return [name for name in _printed(value) if name in columns]
    # Other text without a template is a constant, unless it looks like a field's name.
    if value.replace("_", "").replace(" ", "").isalnum() and not value.isdigit() and key not in CONSTANT:
        raise TaskError(
            f"{task.source or task.name}: {key} names the field {value!r}, which the split {split} lacks; it has "
            f"{', '.join(columns)} (all splits: {describe_splits(task.lmeval)}); correct the name, or write a template with "
            "{{field}}"
        )
    return []


def _check_rows(task: Task, key: str, field: str, split: str, rows: Any) -> None:
    values: Sequence[Any] = rows[field][:] if hasattr(rows, "column_names") else [row.get(field) for row in rows]
    for number, value in enumerate(values):
        if value is None:
            raise TaskError(
                f"{task.source or task.name}: {key} reads the field {field!r}, and row {number} of the split {split} has "
                "nothing there (null or missing); expected a value in every row, so fill it in or take the row out"
            )


def _columns(rows: Any) -> list[str]:
    if (names := getattr(rows, "column_names", None)) is not None:
        return list(names)
    return list(rows[0]) if len(rows) else []


def _printed(template: str) -> list[str]:
    """Return the variables that a Jinja template prints in every row: those outside conditions and loops."""
    try:
        body = env.parse(template).body
    except TemplateError as error:
        raise TaskError(f"not a valid Jinja template ({error}): {template!r}; correct it in the task's file") from error
    outputs = [part for node in body if isinstance(node, nodes.Output) for part in node.nodes]
    while any(isinstance(part, nodes.Filter) for part in outputs):
        outputs = [part.node if isinstance(part, nodes.Filter) else part for part in outputs]
    return [part.name for part in outputs if isinstance(part, nodes.Name)]
