"""Turn an error inside lm-eval into one sentence: which task failed, what was found, and which splits and fields exist.

lm-eval lets errors of a loader, a template or a grader through (`KeyError: 'calls'`), without the name of the task or the
fields of its records. So the task that failed is taken from the traceback.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetGenerationError
from jinja2 import UndefinedError
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig

from harness.errors import TaskError

DATA_NAME = re.compile(r"""\bdata\[["'](\w+)["']\]""")  # how a loader's code reads a suite's local records
LOCAL_FORMATS = ("json", "csv", "parquet", "text", "arrow")


def loading_failed(name: str, contents: Sequence[Mapping[str, Any]], error: Exception) -> TaskError:
    """Return the error for a task or group that lm-eval could not load; `contents` are its task files' mappings."""
    if unread := _unread_data(name, contents, error):
        return TaskError(unread)
    if isinstance(error, DatasetGenerationError):
        reason = " ".join(str(error.__cause__ or error).split())
        return TaskError(
            f"task {name}: its records could not be read ({reason:.400}); expected the same fields, with values of one "
            "type, in every row and split"
        )
    if isinstance(error, OSError) and (names := _local_data(error)):
        first = next(iter(str(error).strip().splitlines()), "no reason given")
        named = " ".join(f"--set data.{each}=FOLDER" for each in names)
        return TaskError(
            f"task {name}: its records could not be fetched ({type(error).__name__}: {first}); name a folder that holds them "
            f"with {named}, or run once where they can be downloaded (HF_TOKEN for data behind a login)"
        )
    if unknown := re.search(r"TaskConfig.*unexpected keyword argument '(\w+)'", str(error)):
        near = difflib.get_close_matches(unknown[1], [field.name for field in fields(TaskConfig)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; what only you read goes under `metadata`"
        return TaskError(f"task {name}: unknown key {unknown[1]!r}, which lm-eval does not take{hint}")
    if isinstance(error, FileNotFoundError):
        return TaskError(
            f"task {name}: a file of its records was not found ({error}); expected the files that dataset_kwargs names, whose "
            f"relative paths count from {Path.cwd()}"
        )
    splits = next((found for failed in _failed(error) if (found := describe_splits(failed))), "")
    exist = f"; its records have {splits}" if splits else ""
    if isinstance(error, KeyError) and error.args and error.args[0] in _named_splits(contents):
        return TaskError(f"task {name} names the split {error.args[0]!r}, which does not exist{exist}")
    if isinstance(error, UndefinedError):
        return TaskError(f"task {name}: a template names a field that the records lack ({error}){exist}")
    return TaskError(f"task {name}: {type(error).__name__} while loading it: {error}{exist}")


def rendering_failed(name: str, doc: Mapping[str, Any], error: Exception) -> TaskError:
    """Return the error for a document that a task's templates or functions could not turn into a prompt."""
    return TaskError(
        f"task {name}: its prompt could not be written ({type(error).__name__}: {error}); the item has {_fields(doc)}"
    )


def grading_failed(name: str, doc: Mapping[str, Any], error: Exception) -> TaskError:
    """Return the error for an answer that a task's grader could not grade."""
    return TaskError(
        f"task {name}: its grader failed on an item ({type(error).__name__}: {error}); the item has {_fields(doc)}; expected "
        "a number from 0 to 1 for each metric"
    )


def failed_in_a_grader(error: Exception) -> TaskError | None:
    """Return the error to raise where a grader failed while lm-eval ran; None for any other error."""
    for frame in _frames(error):
        task, doc = frame.get("self"), frame.get("doc")
        if isinstance(task, ConfigurableTask) and isinstance(doc, dict) and "results" in frame:
            return grading_failed(str(task.config.task), doc, error)
    return None


def describe_splits(task: ConfigurableTask) -> str:
    """Return the splits of a task's records with rows and fields as text; empty where no records were read yet."""
    dataset = getattr(task, "dataset", None)
    if not isinstance(dataset, Mapping):
        return ""
    parts = [
        f"{split} ({len(rows)} rows: {', '.join(getattr(rows, 'column_names', None) or (rows[0] if len(rows) else ()))})"
        for split, rows in dataset.items()
    ]
    return ", ".join(parts)


def _named_splits(contents: Sequence[Mapping[str, Any]]) -> set[Any]:
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    return {str(split) for content in contents for name in names if (split := content.get(name)) is not None}


def _unread_data(name: str, contents: Sequence[Mapping[str, Any]], error: Exception) -> str | None:
    """Return the sentence for a data set that could not be fetched; None where something else failed."""
    paths = (content.get("dataset_path") for content in contents)
    sets = [path for path in dict.fromkeys(paths) if isinstance(path, str) and path not in LOCAL_FORMATS]
    if sets and "Dataset scripts are no longer supported" in str(error):
        return (
            f"task {name}: its data set {', '.join(sets)} is a Python script, which the library datasets no longer runs; "
            "save it as JSON or Parquet files, name a revision that holds such files, or write a loader "
            "(custom_dataset: !function)"
        )
    if not sets or not isinstance(error, OSError):
        return None
    first = next(iter(str(error).strip().splitlines()), "no reason given")
    return (
        f"task {name}: its data set {', '.join(sets)} could not be read here ({type(error).__name__}: {first}); run "
        "once where it can be downloaded, or copy the Hugging Face cache (HF_HOME) from there, or write a task file that "
        "includes this one and reads local files"
    )


def _local_data(error: Exception) -> list[str]:
    """Return the names under `data` that the failed task's loader reads, found in its module's source."""
    loaders = [loader for task in _failed(error) if callable(loader := task.config.custom_dataset)]
    sources = [inspect.getsource(module) for loader in loaders if (module := inspect.getmodule(loader)) is not None]
    return sorted({name for source in sources for name in DATA_NAME.findall(source)})


def _failed(error: Exception) -> Iterator[ConfigurableTask]:
    """Yield the lm-eval tasks in an error's traceback, including one whose construction failed."""
    for frame in _frames(error):
        if isinstance(task := frame.get("self"), ConfigurableTask):
            yield task


def _frames(error: Exception) -> Iterator[Mapping[str, Any]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_locals
        trace = trace.tb_next


def _fields(doc: Mapping[str, Any]) -> str:
    return "the fields " + ", ".join(map(str, doc))
