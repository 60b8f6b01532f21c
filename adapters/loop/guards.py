"""Guards in training: warn once, in one sentence, of each sign that a stage goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

WINDOW = 10
NOT_FINITE = "non-finite"
Sign = Callable[[list[float], list[float]], str | None]


class Guards:
    """Watches a stage's step log line by line; means are over 10 steps, `first` over the first 10 of the stage."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.values: dict[str, list[float]] = {name: [] for name, _, _ in SIGNS}
        self.warned: set[str] = set()

    def look_at(self, line: Mapping[str, Any]) -> list[str]:
        """Return the names of the warnings that this step raised, after giving them."""
        raised = self._loss_is_a_number(line)
        for column, values in self.values.items():
            value = line.get(column)
            if value is not None and math.isfinite(value):
                values.append(float(value))
        for column, name, sign in SIGNS:
            seen = self.values[column]
            if name in self.warned or len(seen) < WINDOW:
                continue
            if sentence := sign(seen[:WINDOW], seen[-WINDOW:]):
                self.warned.add(name)
                raised.append(name)
                self.warn(f"step {line['step']}: {sentence}")
        return raised

    def state_dict(self) -> dict[str, Any]:
        """Return the values seen and the warnings given, for a snapshot."""
        return {"values": self.values, "said": sorted(self.warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a snapshot's."""
        self.values = {name: list(state["values"].get(name, [])) for name in self.values}
        self.warned = set(state["said"])

    def _loss_is_a_number(self, line: Mapping[str, Any]) -> list[str]:
        loss = line.get("loss")
        if loss is None or math.isfinite(loss) or NOT_FINITE in self.warned:
            return []
        self.warned.add(NOT_FINITE)
        self.warn(f"step {line['step']}: the loss is {loss}; expected a finite number; lower the learning rate")
        return [NOT_FINITE]


def broken_step(step: int) -> dict[str, Any]:
    """Return the log line of a step that ended with a loss or gradient that is not finite."""
    return {"step": step, "loss": None, "warnings": [NOT_FINITE]}


def _never_routed(_: list[float], last: list[float]) -> str | None:
    if max(last) > 0:
        return None
    return (
        f"no token has gone to forward KL for {WINDOW} steps, so the method is its policy gradient; look at `threshold`"
    )


def _always_routed(_: list[float], last: list[float]) -> str | None:
    if min(last) < 1:
        return None
    return f"every token has gone to forward KL for {WINDOW} steps, so nothing is reinforced; look at `threshold`"


def _collapsed(first: list[float], last: list[float]) -> str | None:
    if _mean(last) >= 0.1 * _mean(first):
        return None
    return f"entropy fell from {_mean(first):.3g} to {_mean(last):.3g} nats per token; lower the learning rate"


def _inflated(first: list[float], last: list[float]) -> str | None:
    if _mean(last) <= 2 * _mean(first):
        return None
    return (
        f"responses grew from {_mean(first):.0f} to {_mean(last):.0f} tokens; look at some, they may repeat themselves"
    )


def _cut(_: list[float], last: list[float]) -> str | None:
    if _mean(last) <= 0.5:
        return None
    return f"{_mean(last):.0%} of the responses are cut off at the length limit; raise training.max_new_tokens"


def _unrewarded(first: list[float], last: list[float]) -> str | None:
    if _mean(last) >= 0.5 * _mean(first):
        return None
    return (
        f"the mean reward fell from {_mean(first):.3g} to {_mean(last):.3g}, though it is what training raises; lower the "
        "learning rate"
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


SIGNS: tuple[tuple[str, str, Sign], ...] = (
    ("routed_fkl", "never routed", _never_routed),
    ("routed_fkl", "always routed", _always_routed),
    ("entropy", "entropy collapse", _collapsed),
    ("response_tokens_mean", "length inflation", _inflated),
    ("truncated_share", "truncation", _cut),
    ("reward_mean", "reward fell", _unrewarded),
)
