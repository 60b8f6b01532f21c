"""What lm-eval logs of a task that is scored by likelihoods, as facts of a row: nothing is generated there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.lmeval.task import Task


def likelihood_facts(task: Task, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return prompt, target, chosen response and log-likelihoods of one logged item."""
    values = [float(found[0] if isinstance(found, (tuple, list)) else found) for found in sample["filtered_resps"]]
    requests = [tuple(map(str, request)) for request in sample["arguments"]]
    choices = _choices(task, sample["doc"], requests)
    target = sample["target"]
    if choices and isinstance(target, int) and 0 <= target < len(choices):
        target = choices[target]
    return {
        "prompt": requests[0][0],
        "target": "" if task.task.OUTPUT_TYPE == "loglikelihood_rolling" else str(target),
        "response": _most_likely(choices, values[: len(choices)], task.metric) if choices else "",
        "finish": None,
        "tokens": 0,
        "loglikelihoods": values,
    }


def _choices(task: Task, doc: Any, requests: list[tuple[str, ...]]) -> list[str]:
    """Return the choices as text: contexts where a task puts them there, else continuations."""
    if task.task.OUTPUT_TYPE != "multiple_choice":
        return []
    named = [str(choice) for choice in task.task.doc_to_choice(doc)]
    return [request[0] for request in requests[: len(named)]] if task.task.multiple_input else named


def _most_likely(choices: list[str], values: list[float], metric: str) -> str:
    """Return the choice that is counted as the answer; acc_norm divides by the choice's length in characters."""
    lengths = [max(1, len(choice)) if metric == "acc_norm" else 1 for choice in choices]
    return choices[int(np.argmax(np.array(values) / np.array(lengths)))]
