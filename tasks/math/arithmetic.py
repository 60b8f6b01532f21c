"""The tiny suite's math: a chain of additions and subtractions, answered with every step written out.

`3+5+8-8` is answered by `3+5=8;8+8=16;16-8=8#8`. Results on the way stay between 0 and 40, so that a model of less
than a million parameters can learn the task in minutes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import DatasetDict

from tasks.answers import single_answer
from tasks.splits import disjoint_splits

LARGEST_NUMBER = 12
LARGEST_RESULT = 40
DRAWS_PER_ITEM = 100


def chains(*, operations: int, train_size: int, test_size: int, data_seed: int, **_: Any) -> DatasetDict:
    """Generate chains of `operations` additions or subtractions; the same arguments always give the same items.

    Documents have `prompt`, `target` (all steps, then `#` and the result) and `answer` (the result as text).
    Raises `TaskError` where fewer distinct chains turn up than the sizes ask for.
    """
    rng = random.Random(data_seed)
    draws = DRAWS_PER_ITEM * (train_size + test_size)
    return disjoint_splits(islice(_problems(operations, rng), draws), train_size, test_size)


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Grade one answer: `strict` the result after the last `#`, `steps` the whole text, `parsed` a result was found."""
    answer = single_answer(results).strip()
    result = answer.rpartition("#")[2].strip() if "#" in answer else ""
    found = result.isascii() and result.isdigit()
    return {
        "strict": float(found and result.lstrip("0") == doc["answer"].lstrip("0")),
        "steps": float(answer == doc["target"]),
        "parsed": float(found),
    }


def _problems(operations: int, rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Draw chains for ever, leaving out those that pass below 0 or above 40; the chain itself is the key."""
    while True:
        numbers = [rng.randint(1, LARGEST_NUMBER) for _ in range(operations + 1)]
        signs = [rng.choice("+-") for _ in range(operations)]
        results = _running_results(numbers, signs)
        if all(0 <= result <= LARGEST_RESULT for result in results):
            doc = _document(numbers, signs, results)
            yield doc["prompt"], doc


def _running_results(numbers: list[int], signs: list[str]) -> list[int]:
    results = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        results.append(results[-1] + number if sign == "+" else results[-1] - number)
    return results


def _document(numbers: list[int], signs: list[str], results: list[int]) -> dict[str, str]:
    terms = [f"{sign}{number}" for sign, number in zip(signs, numbers[1:], strict=True)]
    steps = [f"{before}{term}={after}" for before, term, after in zip(results, terms, results[1:], strict=False)]
    return {
        "prompt": f"{numbers[0]}{''.join(terms)}",
        "target": f"{';'.join(steps)}#{results[-1]}",
        "answer": str(results[-1]),
    }
