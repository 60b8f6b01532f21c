"""Read an answer of vLLM's `/v1/completions` with `prompt_logprobs`, and refuse one that does not belong to its request.

Each position of a prompt has the log-probabilities of the K most probable tokens there, and that of the prompt's own token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

COMPLETIONS = "/v1/completions"  # the address that servers of vLLM answer at
CLAMPED = -9000.0  # vLLM writes -9999 for minus infinity, because JSON has no infinity
MOST_MASS = 1.01


class AnswerError(Exception):
    """An answer that is cut, malformed, or does not belong to its request; the request may be sent again."""


@dataclass(frozen=True)
class Position:
    """The teacher at one position: its log-probability of the prompt's token, and its most probable tokens, best first."""

    sampled: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


def read_choices(answer: Any, count: int) -> list[dict[str, Any]]:
    """Return the `count` choices of an answer in the order of their prompts; raises `AnswerError` for another number."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != count:
        found = len(choices) if isinstance(choices, list) else "no"
        raise AnswerError(f"the answer holds {found} choices, expected {count}")
    indices = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    if sorted(indices, key=str) != sorted(range(count), key=str):
        raise AnswerError(f"the answer's choices have the indices {indices}, expected 0 to {count - 1}")
    return sorted(choices, key=lambda choice: choice["index"])


def read_prompt(choice: Mapping[str, Any], ids: Sequence[int], top_k: int) -> list[Position]:
    """Return the positions of a prompt from its second token on; raises `AnswerError` for what no model computes of it."""
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and list(echoed) != list(ids):
        raise AnswerError("the answer belongs to another prompt: its token ids differ from those of the request")
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list) or len(entries) != len(ids):
        found = f"{len(entries)} positions" if isinstance(entries, list) else "no prompt_logprobs"
        raise AnswerError(f"the answer holds {found}, expected {len(ids)} positions")
    later = zip(entries[1:], ids[1:], strict=True)
    return [_read_position(entry, token, top_k, place) for place, (entry, token) in enumerate(later, start=1)]


def _read_position(entry: Any, token: int, top_k: int, place: int) -> Position:
    """Return one position from its mapping of token ids to `logprob`; raises `AnswerError` where it is not whole."""
    if not isinstance(entry, dict):
        raise AnswerError(f"position {place} holds {type(entry).__name__}, expected log-probabilities by token id")
    found = {}
    for key, value in cast("dict[Any, Any]", entry).items():
        found[_number(key, place)] = _logprob(value, place)
    if token not in found:
        raise AnswerError(f"position {place} lacks the token {token} of the request: the answer belongs to another one")
    if len(found) < top_k:
        raise AnswerError(f"position {place} holds {len(found)} tokens, expected at least {top_k}")
    if (mass := sum(map(math.exp, found.values()))) > MOST_MASS:
        raise AnswerError(f"the tokens of position {place} have a mass of {mass:.3g}, which cannot be above 1")
    if len(found) > top_k + 1:
        raise AnswerError(f"position {place} holds {len(found)} tokens, expected {top_k} and the token of the request")
    top = sorted(found, key=lambda each: -found[each])[:top_k]
    return Position(found[token], tuple(top), tuple(found[each] for each in top))


def _number(key: Any, place: int) -> int:
    try:
        return int(key)
    except (TypeError, ValueError) as error:
        raise AnswerError(f"position {place} holds {key!r}, expected a token id") from error


def _logprob(value: Any, place: int) -> float:
    logprob = value.get("logprob") if isinstance(value, dict) else value
    if not isinstance(logprob, (int, float)) or isinstance(logprob, bool) or not math.isfinite(logprob):
        raise AnswerError(f"position {place} holds the log-probability {logprob!r}, expected a finite number")
    if logprob > 1e-4:
        raise AnswerError(f"position {place} holds the log-probability {logprob:.4g}, expected at most 0")
    if logprob <= CLAMPED:
        raise AnswerError(f"position {place} holds the log-probability {logprob:g}, which stands for minus infinity")
    return float(logprob)
