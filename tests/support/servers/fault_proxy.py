"""A real HTTP proxy in front of a server that breaks some of its answers, by a seeded draw."""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

Answer = tuple[int, Any]
Fault = Callable[["FaultProxy", str, Any, random.Random], Answer]


class FaultProxy:
    """Forwards requests to `upstream`; `share` of the completions get a fault of `faults`, and `injected` counts them.

    `other` serves other weights under the same name; without it, that fault is left out.
    """

    def __init__(
        self,
        upstream: str,
        share: float = 0.5,
        faults: dict[str, Fault] | None = None,
        seed: int = 0,
        other: str | None = None,
    ) -> None:
        self.upstream, self.share, self.other = upstream, share, other
        known = FAULTS if other is not None else {name: FAULTS[name] for name in FAULTS if name != RESTARTED}
        self.faults = known if faults is None else faults
        self.draw, self.injected = random.Random(seed), Counter[str]()
        self.client = httpx.Client(timeout=60, trust_env=False)
        self.active = self.only_training = False  # only_training: the checks before a run get the server's own answers
        self.earlier: Any = None
        self.late = 3.0  # seconds of a fault that takes too long

    def answer(self, path: str, body: Any) -> Answer:
        """Return the server's answer, or the answer changed by a fault."""
        if not self.active or path != "/v1/completions" or self.draw.random() >= self.share:
            return self.forward(path, body)
        if self.only_training and (len(body["prompt"]) < 2 or "logprobs" in body):
            return self.forward(path, body)
        name = self.draw.choice(sorted(self.faults))
        self.injected[name] += 1
        return self.faults[name](self, path, body, self.draw)

    def forward(self, path: str, body: Any, upstream: str | None = None) -> Answer:
        """Return the server's own answer."""
        url = (upstream or self.upstream) + path
        reply = self.client.get(url) if body is None else self.client.post(url, json=body)
        return reply.status_code, reply.json()


def _time_out(proxy: FaultProxy, path: str, body: Any, _: random.Random) -> Answer:
    time.sleep(proxy.late)
    return proxy.forward(path, body)


def _cut(proxy: FaultProxy, path: str, body: Any, draw: random.Random) -> Answer:
    text = json.dumps(proxy.forward(path, body)[1]).encode()
    return 200, text[: draw.randrange(len(text))]


def _edited(edit: Callable[[list[Any], random.Random], Any]) -> Fault:
    """Return a fault that edits the positions of one sequence, never the probe's alone."""

    def fault(proxy: FaultProxy, path: str, body: Any, draw: random.Random) -> Answer:
        status, answer = proxy.forward(path, body)
        answer = copy.deepcopy(answer)
        choice = answer["choices"][draw.randrange(max(1, len(answer["choices"]) - 1))]
        changed = edit(choice["prompt_logprobs"], draw)
        if changed is not None:
            choice["prompt_logprobs"] = changed
        return status, answer

    return fault


def _each(change: Callable[[float], float]) -> Callable[[list[Any], random.Random], None]:
    def edit(positions: list[Any], _: random.Random) -> None:
        for entry in positions[1:]:
            for value in entry.values():
                value["logprob"] = change(value["logprob"])

    return edit


def _one(change: Callable[[dict[str, Any], random.Random], Any]) -> Callable[[list[Any], random.Random], None]:
    def edit(positions: list[Any], draw: random.Random) -> None:
        change(positions[draw.randrange(1, len(positions))], draw)

    return edit


def _drop(entry: dict[str, Any], draw: random.Random) -> None:
    for _ in range(2):
        if entry:
            del entry[draw.choice(sorted(entry))]


def _set(value: Any) -> Callable[[dict[str, Any], random.Random], Any]:
    return lambda entry, draw: entry[draw.choice(sorted(entry))].update(logprob=value)


def _stale(proxy: FaultProxy, path: str, body: Any, _: random.Random) -> Answer:
    """Return the answer of an earlier request."""
    status, answer = proxy.forward(path, body)
    earlier, proxy.earlier = proxy.earlier, (body["prompt"][:-1], answer)
    if earlier is None or earlier[0] == body["prompt"][:-1]:
        return 500, {}
    return status, earlier[1]


def _swapped(proxy: FaultProxy, path: str, body: Any, _: random.Random) -> Answer:
    """Return the sequences' answers in another order under the same indices; of one sequence, its probe's."""
    status, answer = proxy.forward(path, body)
    choices = copy.deepcopy(answer["choices"])
    for number, choice in enumerate(choices):
        choice["index"] = (number + 1) % len(choices)
        choice.pop("prompt_token_ids", None)
    return status, {"choices": choices}


def _whole(value: Any) -> Fault:
    return lambda *_: (200, value)


def _restarted(proxy: FaultProxy, path: str, body: Any, _: random.Random) -> Answer:
    """Return the answer of the server after a restart with other weights."""
    return proxy.forward(path, body, proxy.other)


RESTARTED = "restarted with other weights"
FAULTS: dict[str, Fault] = {
    RESTARTED: _restarted,
    "time-out": _time_out,
    "429": lambda *_: (429, {"error": {"message": "too many requests"}}),
    "500": lambda *_: (500, {"error": {"message": "internal error"}}),
    "503": lambda *_: (503, b"upstream connect error"),
    "no answer": lambda *_: (0, None),
    "cut": _cut,
    "HTML": _whole(b"<html>504 Gateway Time-out</html>"),
    "empty object": _whole({}),
    "null": _whole(None),
    "no choices": _whole({"choices": []}),
    "no logprobs": _edited(lambda *_: []),
    "null positions": _edited(lambda positions, _: [None] * len(positions)),
    "one position missing": _edited(lambda positions, _: positions.pop()),
    "one position twice": _edited(lambda positions, _: positions.append(positions[-1])),
    "entries missing": _edited(_one(_drop)),
    "shifted by one": _edited(lambda positions, _: [None, positions[-1], *positions[1:-1]]),
    "NaN": _edited(_one(_set(float("nan")))),
    "infinite": _edited(_one(_set(float("-inf")))),
    "clamped": _edited(_one(_set(-9999.0))),
    "text": _edited(_one(_set("-0.5"))),
    "null score": _edited(_one(_set(None))),
    "positive": _edited(_one(_set(0.5))),
    "zeros": _edited(_each(lambda _: 0.0)),
    "probabilities": _edited(_each(lambda value: 2.718281828**value)),
    "stale": _stale,
    "swapped": _swapped,
}
