"""Train and test splits that cannot overlap: an item's content alone decides on which side it falls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, DatasetDict

from harness.errors import TaskError

TEST_PERCENT = 15


def disjoint_splits(items: Iterable[tuple[str, Mapping[str, Any]]], train_size: int, test_size: int) -> DatasetDict:
    """Fill a `train` and a `test` split from a stream of (key, document), dropping repeated documents.

    Items with equal keys fall on the same side, and the test side takes one of them, so choose the key as what must not be
    seen twice. The side depends on the key alone: splits of one task stay disjoint across data seeds, sizes and processes.
    Raises `TaskError` when the stream ends before both splits are full.
    """
    sizes = {"train": train_size, "test": test_size}
    docs: dict[str, list[Mapping[str, Any]]] = {"train": [], "test": []}
    seen: set[str] = set()
    for key, doc in items:
        side, once = ("test", key) if in_test(key) else ("train", doc["prompt"])
        if len(docs[side]) < sizes[side] and once not in seen:
            seen.add(once)
            docs[side].append(doc)
        if all(len(docs[split]) == size for split, size in sizes.items()):
            break
    for split, size in sizes.items():
        _require(split, found=len(docs[split]), wanted=size)
    return DatasetDict({split: Dataset.from_list([dict(doc) for doc in rows]) for split, rows in docs.items()})


def in_test(key: str) -> bool:
    """Say whether a key belongs to the test side: about 15 in 100 do, the same ones in every process."""
    first_bytes = hashlib.sha256(key.encode()).digest()[:8]
    return int.from_bytes(first_bytes, "big") % 100 < TEST_PERCENT


def _require(split: str, found: int, wanted: int) -> None:
    if found < wanted or wanted < 1:
        raise TaskError(
            f"{split}_size is {wanted}, but there are only {found} distinct {split} items to draw; "
            f"set {split}_size between 1 and {max(found, 1)}"
        )
