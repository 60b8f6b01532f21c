"""ToolAlpaca as splits for lm-eval: training records to `train`, evaluation records to `test`, by API category.

Files come in by name: `data["toolalpaca_train"]` (training APIs or rows) and `data["toolalpaca_eval"]` (any form of
`toolalpaca_records`). Without a training file the `train` split is empty: the task evaluates, and cannot be a stage.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value

from harness.errors import TaskError
from tasks.tools.toolalpaca_records import Records, read_records

FIELDS = ("api", "category", "instruction", "tools", "prompt", "target", "calls")
FEATURES = Features({field: Value("string") for field in FIELDS})

log = logging.getLogger(__name__)


def splits(*, data: Mapping[str, str] | None = None, categories: Sequence[str] | None = None, **_: Any) -> DatasetDict:
    """Load the documents of some categories, or of all; what the placeholder rule leaves out is counted in the log.

    Raises `TaskError` where there is no evaluation file, where the training file only evaluates, or where a split
    holds nothing of the categories.
    """
    test = _select(_load(data, "toolalpaca_eval").docs, categories, "toolalpaca_eval")
    train: list[dict[str, str]] = []
    if data and "toolalpaca_train" in data:
        records = _load(data, "toolalpaca_train")
        if records.form == "simulated":
            raise TaskError(
                f"data.toolalpaca_train: {data['toolalpaca_train']} holds `Golden_Answers` and only evaluates; "
                "give training APIs with `Instances`, or rows with `prompt` and `golden_answer`"
            )
        train = _select(records.docs, categories, "toolalpaca_train")
    return DatasetDict({"train": _dataset(train), "test": _dataset(test)})


def same_records(*, parts: Sequence[Mapping[str, Any]], data: Mapping[str, str] | None = None, **_: Any) -> DatasetDict:
    """Take a few evaluation records as both splits: a memorisation check, never a result.

    Each part names `categories` and how many `items` to take of them, those with the shortest prompts.
    """
    docs = _load(data, "toolalpaca_eval").docs
    chosen = [doc for part in parts for doc in _shortest(docs, part["categories"], part["items"])]
    return DatasetDict({"train": _dataset(chosen), "test": _dataset(chosen)})


def _load(data: Mapping[str, str] | None, name: str) -> Records:
    if not data or name not in data:
        raise TaskError(
            f"ToolAlpaca needs local records and found no data.{name}; name the file under `data` in the suite, or "
            f"""with bare lm_eval as --metadata '{{"data": {{"{name}": "PATH"}}}}'"""
        )
    records = read_records(data[name])
    if records.left_out:
        total = len(records.docs) + len(records.left_out)
        log.warning("data.%s: left out %d of %d items that the rule does not cover", name, len(records.left_out), total)
    return records


def _select(docs: list[dict[str, str]], categories: Collection[str] | None, name: str) -> list[dict[str, str]]:
    if categories is not None and any(not doc["category"] for doc in docs):
        raise TaskError(f"data.{name}: some records name no category; use the task toolalpaca, which takes them all")
    selected = docs if categories is None else [doc for doc in docs if doc["category"] in categories]
    if not selected:
        found = ", ".join(sorted({doc["category"] for doc in docs})) or "no usable record"
        raise TaskError(f"data.{name}: found {found}; expected records of {', '.join(categories or ['any category'])}")
    return selected


def _shortest(docs: list[dict[str, str]], categories: Collection[str], items: int) -> list[dict[str, str]]:
    selected = _select(docs, categories, "toolalpaca_eval")
    return sorted(selected, key=lambda doc: (len(doc["prompt"]), doc["prompt"]))[:items]


def _dataset(docs: list[dict[str, str]]) -> Dataset:
    columns = {field: [doc[field] for doc in docs] for field in FIELDS}
    return Dataset.from_dict(columns, features=FEATURES)
