"""GSM8K: grade-school word problems with worked solutions (Cobbe et al. 2021, arXiv 2110.14168).

Records come from the hub at a pinned revision, or from local `train.jsonl` and `test.jsonl`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from harness.errors import TaskError
from tasks.answers import single_answer

HUB_NAME, HUB_CONFIG = "openai/gsm8k", "main"
HUB_REVISION = "e53f048856ff4f594e959d75785d2c2d37b678ee"

INSTRUCTION = "Reason step by step. Then write the final answer as a number on a last line of its own, after ####."

CALCULATOR = re.compile(r"<<[^<>]*>>")
PLAIN_NUMBER = re.compile(r"([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)%?\.?", re.ASCII)
NUMBER_IN_TEXT = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)


def splits(*, data: Mapping[str, str] | None = None, **_: Any) -> DatasetDict:
    """Load all records, from the folder `data["gsm8k"]` when it is given and from the hub otherwise.

    Documents have `question`, `prompt`, `target` (the worked solution without calculator annotations, ending in
    `#### N`) and `answer` (N as text). Raises `TaskError` for a missing file or a record with other fields.
    """
    rows = {split: _rows(split, data) for split in ("train", "test")}
    return DatasetDict({split: Dataset.from_list([_document(row) for row in rows[split]]) for split in rows})


def shortest_records(*, items: int, data: Mapping[str, str] | None = None, **_: Any) -> DatasetDict:
    """Load the `items` shortest training records as both splits: a memorisation check, never a result."""
    docs = sorted((_document(row) for row in _rows("train", data)), key=_length)[:items]
    return DatasetDict({"train": Dataset.from_list(docs), "test": Dataset.from_list(docs)})


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Grade one answer: `strict` the number after the last ####, `flexible` the last number, `parsed` #### has one."""
    answer = single_answer(results)
    gold, strict, flexible = number(doc["answer"]), marked_number(answer), last_number(answer)
    return {
        "strict": float(strict is not None and strict == gold),
        "flexible": float(flexible is not None and flexible == gold),
        "parsed": float(strict is not None),
    }


def marked_number(text: str) -> Decimal | None:
    """Return the number that fills the rest of the line after the last `####`, or None."""
    _, marker, rest = text.rpartition("####")
    return number(rest.partition("\n")[0]) if marker else None


def last_number(text: str) -> Decimal | None:
    """Return the last number anywhere in a text, or None; a minus after a digit or letter is a subtraction."""
    found = NUMBER_IN_TEXT.findall(text)
    return number(found[-1]) if found else None


def number(text: str) -> Decimal | None:
    """Read a text that is only a number, with thousands commas, $, % and a final period allowed.

    Decimals compare by value, so 1 equals 1.0. Returns None for anything else, such as a number with its unit.
    """
    match = PLAIN_NUMBER.fullmatch(text.strip())
    return Decimal(match[1] + match[2].replace(",", "")) if match else None


def _length(doc: Mapping[str, str]) -> tuple[int, str]:
    return len(doc["prompt"]) + len(doc["target"]), doc["prompt"]


def _rows(split: str, data: Mapping[str, str] | None) -> list[dict[str, Any]]:
    if data and "gsm8k" in data:
        return _read_jsonl(Path(data["gsm8k"]) / f"{split}.jsonl")
    return load_dataset(HUB_NAME, HUB_CONFIG, revision=HUB_REVISION, split=split).to_list()


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise TaskError(f"GSM8K: {path} does not exist; data.gsm8k is a folder with train.jsonl and test.jsonl")
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise TaskError(f"GSM8K: {path} is not JSON lines ({error}); expected one object a line") from error


def _document(row: Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(row.get("question"), str) or "####" not in str(row.get("answer")):
        raise TaskError(
            f"GSM8K: found a record with {sorted(row)}, expected `question` and an `answer` that ends #### N"
        )
    target = CALCULATOR.sub("", row["answer"])
    answer = marked_number(target)
    if answer is None:
        raise TaskError(
            f"GSM8K: no number follows #### in the solution of {row['question'][:60]!r}; correct the record"
        )
    return {
        "question": row["question"],
        "prompt": f"{row['question']}\n\n{INSTRUCTION}",
        "target": target,
        "answer": str(answer),
    }
