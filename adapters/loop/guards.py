"""Guards of a stage's training: each sign of a problem is warned of once, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

WINDOW = 10  # steps
NOT_FINITE = "non-finite"
# Gets a column's values of the stage's first and of its last WINDOW steps; returns a sentence where something is wrong.
Sign = Callable[[list[float], list[float]], str | None]


class Guards:
    """Checks the lines of a stage's step log against SIGNS, and passes each kind of warning to `warn` once.

    `vocabulary` is the number of tokens, by which a flat teacher is known; without it, that is not checked.
    """

    def __init__(self, warn: Callable[[str], None], vocabulary: int | None = None) -> None:
        self.warn = warn
        uniform = math.log(vocabulary) if vocabulary is not None else math.inf
        self.signs = (*SIGNS, ("teacher_entropy", "teacher flat", partial(_flat, uniform)))
        self.values: dict[str, list[float]] = {name: [] for name, _, _ in self.signs}
        self.warned: set[str] = set()

    def look_at(self, line: Mapping[str, Any]) -> list[str]:
        """Warn of the signs that this line is the first to show, and return their names."""
        raised = self._check_loss(line)
        for column, values in self.values.items():
            value = line.get(column)
            if value is not None and math.isfinite(value):
                values.append(float(value))
        for column, name, sign in self.signs:
            seen = self.values[column]
            if name in self.warned or len(seen) < WINDOW:
                continue
            if sentence := sign(seen[:WINDOW], seen[-WINDOW:]):
                self.warned.add(name)
                raised.append(name)
                self.warn(f"step {line['step']}: {sentence}")
        return raised

    def state_dict(self) -> dict[str, Any]:
        """Return the values seen and the warnings given so far, for a snapshot."""
        return {"values": self.values, "said": sorted(self.warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a snapshot."""
        self.values = {name: list(state["values"].get(name, [])) for name in self.values}
        self.warned = set(state["said"])

    def _check_loss(self, line: Mapping[str, Any]) -> list[str]:
        loss = line.get("loss")
        if loss is None or math.isfinite(loss) or NOT_FINITE in self.warned:
            return []
        self.warned.add(NOT_FINITE)
        self.warn(f"step {line['step']}: the loss is {loss}; expected a finite number; lower the learning rate")
        return [NOT_FINITE]


def broken_step(step: int) -> dict[str, Any]:
    """Return the step-log line of a step that ended with a loss or gradient that is not finite."""
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


def _flat(uniform: float, _: list[float], last: list[float]) -> str | None:
    """`uniform` is the entropy of a uniform distribution over the vocabulary, in nats."""
    if _mean(last) < 0.9 * uniform:
        return None
    return (
        f"the teacher's entropy is {_mean(last):.3g} nats per token, nearly the {uniform:.3g} of a uniform distribution, so "
        "it teaches next to nothing; check that its weights are loaded"
    )


def _disagrees(_: list[float], last: list[float]) -> str | None:
    if _mean(last) >= 0.05:
        return None
    return (
        f"the sampled token is the teacher's most probable one at only {_mean(last):.1%} of the positions; check that it is "
        "the right teacher, and that it reads the same prompts"
    )


def _ruled_out(_: list[float], last: list[float]) -> str | None:
    if _mean(last) <= 0.5:
        return None
    return (
        f"the teacher gives {_mean(last):.0%} of the sampled tokens a probability below 1e-7, as good as 0; check that it is "
        "the right teacher, and that it reads the same prompts"
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
    ("teacher_agreement", "teacher disagrees", _disagrees),
    ("teacher_neginf_share", "teacher rules out", _ruled_out),
)
