"""Faults that a teacher's answer can have, each seeded, and how a training step of a faulty teacher ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapters.aopd import AOPD
from adapters.gkd import GKD
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD
from harness.errors import HarnessError
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch
from harness.teachers.local import LocalTeacher
from tests.support.models import local_teacher
from tests.support.stages import stage

METHODS: dict[str, LoopAdapter] = {"opd": OPD(), "aopd": AOPD(top_k=4), "gkd": GKD(lmbda=1)}
Fault = Callable[[TeacherScores, random.Random], Any]


def sampled(change: Callable[[Tensor, random.Random], Any]) -> Fault:
    """Return a fault of the response tokens' scores."""
    return lambda scores, draw: replace(scores, sampled=change(scores.sampled, draw))


def at(value: float) -> Callable[[Tensor, random.Random], Tensor]:
    """Return a change that sets one token's score."""

    def change(values: Tensor, draw: random.Random) -> Tensor:
        found = values.clone()
        found[draw.randrange(len(found))] = value
        return found

    return change


def rows(change: Callable[[Tensor], Any]) -> Fault:
    """Return a fault of the rows over the vocabulary; none where they are not requested."""

    def faulty(scores: TeacherScores, _: random.Random) -> TeacherScores:
        own = scores.rows
        return scores if own is None else replace(scores, rows=lambda place: change(own(place)))

    return faulty


def raising(error: Exception) -> Fault:
    """Return a fault that raises."""

    def faulty(*_: Any) -> Any:
        raise error

    return faulty


FAULTS: dict[str, Fault] = {
    "nan": sampled(at(float("nan"))),
    "inf": sampled(at(float("-inf"))),
    "positive": sampled(at(0.7)),
    "above the best token": sampled(at(-1e-6)),
    "one of -100": sampled(at(-100.0)),
    "all of -9999": sampled(lambda v, _: torch.full_like(v, -9999.0)),
    "all of -1": sampled(lambda v, _: torch.full_like(v, -1.0)),
    "zeros": sampled(lambda v, _: torch.zeros_like(v)),
    "one score for the batch": sampled(lambda v, _: v[:1].expand(len(v)).clone()),
    "one score of length 1": sampled(lambda v, _: v[:1]),
    "a column": sampled(lambda v, _: v[:, None]),
    "too short": sampled(lambda v, _: v[:-1]),
    "half": sampled(lambda v, _: v.half()),
    "int64": sampled(lambda v, _: v.long()),
    "a list": sampled(lambda v, _: v.tolist()),
    "nothing": sampled(lambda *_: None),
    "shifted by one": sampled(lambda v, _: v.roll(1)),
    "of a different response": sampled(lambda v, _: v.flip(0)),
    "log10": sampled(lambda v, _: v / 2.302585),
    "ids below 0": lambda s, _: replace(s, top_ids=s.top_ids - 100),
    "ids out of range": lambda s, _: replace(s, top_ids=s.top_ids + 1000),
    "ids of int32": lambda s, _: replace(s, top_ids=s.top_ids.int()),
    "ids of a different position": lambda s, _: replace(s, top_ids=s.top_ids.roll(1, 0)),
    "top scores too few": lambda s, _: replace(s, top_logprobs=s.top_logprobs[:, :-1]),
    "top scores halved": lambda s, _: replace(s, top_logprobs=s.top_logprobs.half()),
    "top mass above 1": lambda s, _: replace(s, top_logprobs=torch.full_like(s.top_logprobs, 0.01)),
    "all of a different position": lambda s, _: replace(
        s, sampled=s.sampled.roll(1), top_ids=s.top_ids.roll(1, 0), top_logprobs=s.top_logprobs.roll(1, 0)
    ),
    "not scores": lambda *_: {"logprobs": [0.0]},
    "none": lambda *_: None,
    "raises RuntimeError": raising(RuntimeError("CUDA error: device-side assert\ntriggered")),
    "raises KeyError": raising(KeyError("logprobs")),
    "raises TimeoutError": raising(TimeoutError()),
    "rows unnormalised": rows(lambda r: r + 0.5),
    "rows of zeros": rows(torch.zeros_like),
    "rows too few": rows(lambda r: r[:-1]),
    "rows too narrow": rows(lambda r: r[:, :-1]),
    "rows of probabilities": rows(torch.exp),
}


# With one most probable token at each of 16 positions, an answer from the wrong position may agree with itself.
UNDECIDABLE = {
    "shifted by one",
    "of a different response",
    "all of a different position",
    "ids of a different position",
    "log10",
}


@dataclass
class Faulty:
    """A teacher with one fault; it is a model of this process in everything else."""

    teacher: LocalTeacher
    fault: Fault
    draw: random.Random

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> Any:
        """Return the scores with the fault."""
        return self.fault(self.teacher.score(batch, request, temperature), self.draw)


def outcome_of(adapter: LoopAdapter, fault: Fault, seed: int) -> str:
    """Return how a step of a faulty teacher ends: refused, silent or traceback; a refusal changes no weight."""
    teacher: Any = Faulty(local_teacher(seed + 1), fault, random.Random(seed))
    ctx = replace(stage(), teacher=teacher)
    before = [p.detach().clone() for p in ctx.student.parameters()]
    outcome, sentence = "silent", ""
    try:
        adapter.train_stage(ctx)
    except HarnessError as error:
        outcome, sentence = "refused", str(error)
    except Exception:
        outcome = "traceback"
    assert "\n" not in sentence
    changed = any(not torch.equal(a, b) for a, b in zip(before, ctx.student.parameters(), strict=True))
    assert not (outcome == "refused" and changed)
    return outcome


def try_fault(number: int) -> tuple[str, str, str]:
    """Return how the numbered fault ends, with its method and name: refused, undecidable, silent or traceback."""
    name, fault = CASES[number % len(CASES)]
    outcome = outcome_of(METHODS[name], FAULTS[fault], number)
    if outcome == "silent" and name == "opd" and fault in UNDECIDABLE:
        outcome = "undecidable"
    return outcome, name, fault


CASES = [(name, fault) for name in METHODS for fault in FAULTS if fault.startswith("rows") <= (name == "gkd")]
