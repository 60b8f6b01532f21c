r"""Problems with a boxed answer from a local folder: `test.jsonl` and, for a task that is trained on, `train.jsonl`.

A line holds `problem`, `answer` (LaTeX or a number) and may hold `solution`; without `answer` it is what the solution's
last box holds, as in MATH's own files. Other fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value

from harness.errors import TaskError
from tasks.math.boxed import last_box

INSTRUCTION = r"Reason step by step. Then write the final answer in \boxed{}."
FIELDS = ("problem", "prompt", "target", "answer")
FEATURES = Features({field: Value("string") for field in FIELDS})


def splits(*, records: str, data: Mapping[str, str] | None = None, **_: Any) -> DatasetDict:
    r"""Load the folder `data[records]`; without `train.jsonl` the train split is empty and the task only evaluates.

    Documents have `problem`, `prompt`, `target` (the solution, ending in the answer's box) and `answer`.
    Raises `TaskError` for a missing file or a record with other fields.
    """
    if not data or records not in data:
        raise TaskError(
            f"math with boxed answers needs local records and found no data.{records}; name their folder under `data` in "
            f"""the suite, or with bare lm_eval as --metadata '{{"data": {{"{records}": "FOLDER"}}}}'"""
        )
    folder = Path(data[records])
    train = _documents(folder / "train.jsonl") if (folder / "train.jsonl").exists() else []
    return DatasetDict({"train": _dataset(train), "test": _dataset(_documents(folder / "test.jsonl"))})


def _dataset(docs: list[dict[str, str]]) -> Dataset:
    return Dataset.from_dict({field: [doc[field] for doc in docs] for field in FIELDS}, features=FEATURES)


def _documents(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise TaskError(f"{path} does not exist; expected a folder with test.jsonl and, to train on it, train.jsonl")
    lines = path.read_text(encoding="utf-8").split("\n")
    docs = [_document(line, f"{path} line {at}") for at, line in enumerate(lines, start=1) if line.strip()]
    if not docs:
        raise TaskError(f"{path} is empty; expected one JSON object a line with `problem` and `answer`")
    return docs


def _document(line: str, where: str) -> dict[str, str]:
    row = _row(line, where)
    solution = str(row.get("solution") or "").strip()
    problem, answer = row.get("problem"), _answer(row.get("answer"), solution)
    if not isinstance(problem, str) or not answer:
        raise TaskError(
            f"{where}: found a record with {', '.join(sorted(row))}; expected `problem` and `answer`, or a `solution` "
            "whose last box holds the answer"
        )
    target = _worked(solution, answer)
    if last_box(target) != answer:
        raise TaskError(f"{where}: the braces of the answer {answer!r} do not match; correct the record")
    return {"problem": problem, "prompt": f"{problem}\n\n{INSTRUCTION}", "target": target, "answer": answer}


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{where}: not JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise TaskError(f"{where}: found {type(row).__name__}, expected an object with `problem` and `answer`")
    return row


def _answer(answer: Any, solution: str) -> str:
    """Return the reference's text: `answer`, without a box around it, or else what the solution's last box holds."""
    if isinstance(answer, str | int | float) and not isinstance(answer, bool):
        return last_box(str(answer)) or str(answer).strip()
    return (last_box(solution) or "") if answer is None else ""


def _worked(solution: str, answer: str) -> str:
    """Return the text to train on: the solution, with a last sentence where it does not end in the answer's box."""
    if last_box(solution) == answer:
        return solution
    ending = rf"The final answer is \boxed{{{answer}}}."
    return f"{solution}\n\n{ending}" if solution else ending
