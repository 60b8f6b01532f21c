"""Read an answer of vLLM's `/v1/completions` with `prompt_logprobs`, and refuse one that does not belong to its request.

At each position of a prompt it has the log-probabilities, in nats, of the K most probable tokens and of the prompt's token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

COMPLETIONS = "/v1/completions"  # the path of the requests
CLAMPED = -9000.0  # vLLM writes -9999 for minus infinity, because JSON has no infinity
MOST_MASS = 1.01  # probability of the tokens at a position, rounding included


class AnswerError(Exception):
    """An answer that is cut, malformed, or does not belong to its request; the request may be sent again."""


@dataclass(frozen=True)
class Position:
    """A model at one position: its log-probability of the prompt's token, and its most probable tokens, best first."""

    sampled: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


def read_choices(answer: Any, count: int) -> list[dict[str, Any]]:
    """Return the `count` choices of an answer in the order of their prompts; raises `AnswerError` for any other number."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != count:
        found = len(choices) if isinstance(choices, list) else "no"
        raise AnswerError(f"the answer has {found} choices, expected {count}")
    indices = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    if sorted(indices, key=str) != sorted(range(count), key=str):
        raise AnswerError(f"the answer's choices have the indices {indices}, expected 0 to {count - 1}")
    return sorted(choices, key=lambda choice: choice["index"])


def read_prompt(choice: Mapping[str, Any], ids: Sequence[int], top_k: int) -> list[Position]:
    """Return a prompt's positions from its second token on; raises `AnswerError` for values that no model computes."""
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and list(echoed) != list(ids):
        raise AnswerError("the answer belongs to another prompt: its token ids differ from those of the request")
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list) or len(entries) != len(ids):
        found = f"{len(entries)} positions" if isinstance(entries, list) else "no prompt_logprobs"
        raise AnswerError(f"the answer has {found}, expected {len(ids)} positions")
    later = zip(entries[1:], ids[1:], strict=True)
    return [_read_position(entry, token, top_k, place) for place, (entry, token) in enumerate(later, start=1)]


def _read_position(entry: Any, token: int, top_k: int, place: int) -> Position:
    """Return one position from its mapping of token ids to `logprob`; raises `AnswerError` if it is incomplete or wrong."""
    if not isinstance(entry, dict):
        raise AnswerError(f"position {place} has {type(entry).__name__}, expected log-probabilities by token id")
    logprobs: dict[int, float] = {}
    for key, value in cast("dict[Any, Any]", entry).items():
        logprobs[_token_id(key, place)] = _logprob(value, place)
    if token not in logprobs:
        raise AnswerError(f"position {place} lacks token {token} of the request: the answer belongs to another request")
    if len(logprobs) < top_k:
        raise AnswerError(f"position {place} has {len(logprobs)} tokens, expected at least {top_k}")
    if (mass := sum(map(math.exp, logprobs.values()))) > MOST_MASS:
        raise AnswerError(f"the tokens of position {place} have a probability of {mass:.3g}, expected at most 1")
    if len(logprobs) > top_k + 1:
        raise AnswerError(f"position {place} has {len(logprobs)} tokens, expected {top_k} and the token of the request")
    top = sorted(logprobs, key=lambda each: -logprobs[each])[:top_k]
    return Position(logprobs[token], tuple(top), tuple(logprobs[each] for each in top))


def _token_id(key: Any, place: int) -> int:
    try:
        return int(key)
    except (TypeError, ValueError) as error:
        raise AnswerError(f"position {place} has {key!r}, expected a token id") from error


def _logprob(value: Any, place: int) -> float:
    logprob = value.get("logprob") if isinstance(value, dict) else value
    if not isinstance(logprob, (int, float)) or isinstance(logprob, bool) or not math.isfinite(logprob):
        raise AnswerError(f"position {place} has the log-probability {logprob!r}, expected a finite number")
    if logprob > 1e-4:
        raise AnswerError(f"position {place} has the log-probability {logprob:.4g}, expected at most 0")
    if logprob <= CLAMPED:
        raise AnswerError(f"position {place} has the log-probability {logprob:g}, by which vLLM means minus infinity")
    return float(logprob)
