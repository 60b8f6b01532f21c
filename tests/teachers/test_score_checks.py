"""What a teacher may return: of seeded faults, none trains a student silently and none ends in a traceback.

`TEACHER_FAULTS` sets how many are tried; where it is not set, each fault is tried once for each method.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.errors import TrainingError
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import make_batches
from harness.teachers.local import LocalTeacher
from harness.teachers.score_checks import check_scores
from tests.support.models import STOP, FakeTokenizer, qwen3, rollout
from tests.support.servers.teacher_faults import CASES, METHODS, try_fault
from tests.support.stages import stage


@pytest.mark.slow
def test_no_fault_of_a_teacher_is_silent_and_none_ends_in_a_traceback(capsys: pytest.CaptureFixture[str]):
    tried = int(os.environ.get("TEACHER_FAULTS", len(CASES)))
    counts: Counter[str] = Counter()
    bad: list[tuple[str, str, str]] = []
    for number in range(tried):
        outcome, name, fault = try_fault(number)
        counts[outcome] += 1
        if outcome in ("silent", "traceback"):
            bad.append((outcome, name, fault))
    with capsys.disabled():
        summary = ", ".join(f"{kind} {counts[kind]}" for kind in ("refused", "undecidable", "silent", "traceback"))
        print(f"\nteacher faults: tried {tried}, {summary}")
    assert bad == []


@pytest.mark.parametrize("name", METHODS)
def test_a_sound_teacher_trains(name: str):
    log: list[dict[str, Any]] = []
    ctx = stage(log=log)
    before = [parameter.clone() for parameter in ctx.student.parameters()]
    METHODS[name].train_stage(ctx)
    assert not all(torch.equal(p, b) for p, b in zip(ctx.student.parameters(), before, strict=True))
    assert [line["step"] for line in log] == list(range(ctx.training.steps))


def test_every_teacher_of_this_process_passes_in_any_precision():
    (batch,) = make_batches([rollout([1, 2], [4, 5, STOP]), rollout([3], [6, 7, 8])], "token_mean", None)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        teacher = LocalTeacher(qwen3(seed=1, dtype=dtype), FakeTokenizer(), FakeTokenizer())
        request = TeacherRequest(top_k=8, entropy=True, vocabulary=True)
        scores = check_scores(teacher.score(batch, request, 0.7), batch, request, 24)
        assert scores.rows is not None
        assert scores.rows(slice(0, 4)).shape == (4, 24)


def test_tokens_of_which_a_teacher_is_sure_may_round_to_the_same_score():
    (batch,) = make_batches([rollout([1], [4, 5, 6, STOP])], "token_mean", None)
    empty = torch.zeros(4, 0)
    near = torch.full((4,), -5.9604645e-08)
    scores = TeacherScores(near, empty.long(), empty)
    assert check_scores(scores, batch, TeacherRequest()) is scores
    with pytest.raises(TrainingError, match="the same log-probability"):
        check_scores(replace(scores, sampled=torch.full((4,), -0.5)), batch, TeacherRequest())
