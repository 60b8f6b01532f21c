"""What all graders share: one generated text out of what lm-eval hands over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.errors import TaskError


def single_answer(results: Sequence[Any]) -> str:
    """Return the one generated text in lm-eval's `results`, which is `[text]` or, with `repeats`, `[[text, ...]]`.

    Raises `TaskError` for several samples of one item: grading only the first would drop the others silently.
    """
    samples = results[0] if len(results) == 1 and isinstance(results[0], list | tuple) else results
    if len(samples) == 1 and isinstance(samples[0], str):
        return samples[0]
    raise TaskError(
        f"the grader got {len(samples)} samples for one item, expected 1; grade samples one at a time "
        "(lm-eval's `repeats` needs a filter that keeps one)"
    )
