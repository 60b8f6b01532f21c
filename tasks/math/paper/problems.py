r"""Math problems from the hub at fixed revisions, or from local copies of the same repositories, with the paper's grading.

The prompt is the problem alone: neither the official evaluation nor this one asks for a box. The graded answer is what the
last closed, non-empty `\boxed{}` holds, wherever it stands; without one the answer is wrong. Equal texts are equal, and all
else is math-verify's verdict, the reference first.

Deviation from the released evaluation: a verdict has 5 seconds, in a process of its own, where the released code has no limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset
from datasets.exceptions import DatasetNotFoundError

from harness.errors import TaskError
from tasks.answers import single_answer
from tasks.math.boxed import BOX, last_box
from tasks.math.verdicts import same

FIELDS = ("source", "prompt", "target", "answer")
FEATURES = Features({field: Value("string") for field in FIELDS})


def splits(
    *,
    test: Sequence[Mapping[str, Any]],
    train: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, str] | None = None,
    **_: Any,
) -> DatasetDict:
    """Load the sources of each split; `data[name]` takes a source from a local folder in place of the hub.

    A source has `name`, `repository`, `revision`, `split`, `problem` and `answer` (the columns), and may have `solution` (a
    column with worked text) and `items` (at most so many). A source with `conversations` (a column of `from` and `value`)
    takes problem and solution from its first two turns, and `where` (column to value) selects rows.
    Documents have `source`, `prompt`, `target` (solution and box) and `answer`. Raises `TaskError` where a source cannot be
    loaded or a row has another shape.
    """
    loaded = {"train": train, "test": test}
    return DatasetDict({split: _dataset(sources, data or {}) for split, sources in loaded.items()})


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    r"""Grade one answer: `strict` its last valid box equals the reference, `parsed` it has one, `timed_out` no verdict."""
    answer = last_valid_box(single_answer(results))
    equal = bool(answer) and (answer == doc["answer"].strip() or same(doc["answer"], answer))
    return {"strict": float(bool(equal)), "parsed": float(bool(answer)), "timed_out": float(equal is None)}


def last_valid_box(text: str) -> str:
    r"""Return what the last closed, non-empty box of a text holds, or "" where there is none.

    An answer that is cut off inside `\boxed{` keeps the box before it, as the released evaluation has it.
    """
    starts = [box.start() for box in BOX.finditer(text)]
    ends = [*starts[1:], len(text)]
    parts = (text[start:end] for start, end in zip(reversed(starts), reversed(ends), strict=False))
    return next((held for part in parts if (held := last_box(part))), "")


def _dataset(sources: Iterable[Mapping[str, Any]], data: Mapping[str, str]) -> Dataset:
    docs = [doc for source in sources for doc in islice(_documents(source, data), source.get("items"))]
    return Dataset.from_dict({field: [doc[field] for doc in docs] for field in FIELDS}, features=FEATURES)


def _documents(source: Mapping[str, Any], data: Mapping[str, str]) -> Iterator[dict[str, str]]:
    name = source["name"]
    for place, row in enumerate(_rows(source, data)):
        if any(row.get(column) != value for column, value in source.get("where", {}).items()):
            continue
        if "conversations" in source:
            if worked := _finished_answer(row, source, place):
                yield {"source": name, **worked}
            continue
        problem, answer = row.get(source["problem"]), str(row.get(source["answer"], "")).strip()
        if not isinstance(problem, str) or not problem.strip() or not answer:
            raise TaskError(
                f"{name} row {place}: found {', '.join(sorted(row))}; expected a problem in `{source['problem']}` and an "
                f"answer in `{source['answer']}`"
            )
        solution = str(row.get(source.get("solution", ""), "")).strip()
        yield {"source": name, "prompt": problem.strip(), "target": _worked(solution, answer), "answer": answer}


def _rows(source: Mapping[str, Any], data: Mapping[str, str]) -> Iterable[Mapping[str, Any]]:
    name, split = source["name"], source["split"]
    place, revision = (data[name], None) if name in data else (source["repository"], source["revision"])
    # A large repository is read row by row and only as far as it is needed.
    streaming = "items" in source
    try:
        return load_dataset(place, revision=revision, split=split, streaming=streaming)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise TaskError(
            f"{name}: {place} cannot be loaded (split {split}): {' '.join(str(error).split())}; download "
            f"{source['repository']} at revision {source['revision']}, and name the folder with --set data.{name}=FOLDER"
        ) from error


def _finished_answer(row: Mapping[str, Any], source: Mapping[str, Any], place: int) -> dict[str, str] | None:
    """Return problem and answer of a conversation; None where the answer's thinking does not end or it has no box."""
    turns = row.get(source["conversations"])
    if not isinstance(turns, list) or len(turns) < 2 or not all({"from", "value"} <= set(turn) for turn in turns):
        raise TaskError(
            f"{source['name']} row {place}: found {', '.join(sorted(row))}; expected `{source['conversations']}`, a list of "
            "turns with `from` and `value`"
        )
    problem, worked = turns[0]["value"].strip(), turns[1]["value"].strip()
    thinking, closed, _ = worked.rpartition("</think>")
    answer = last_valid_box(worked)
    if not answer or ("<think>" in worked and not (closed and thinking)):
        return None
    return {"prompt": problem, "target": worked, "answer": answer}


def _worked(solution: str, answer: str) -> str:
    """Return the text to train on: the solution, with a last sentence where it does not end in the answer's box."""
    if last_valid_box(solution) == answer:
        return solution
    ending = rf"The final answer is \boxed{{{answer}}}."
    return f"{solution}\n\n{ending}" if solution else ending
