"""Guards in training: each problem is reported once, in its own words, and only when it occurs."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.aopd import AOPD
from adapters.gkd import GKD
from adapters.loop.diagnostics import entropy_of
from adapters.loop.guards import WINDOW, Guards
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD
from harness.lm.logprobs import TeacherScores
from tests.support.models import local_teacher
from tests.support.stages import stage

HEALTHY = {
    "routed_fkl": 0.3, "entropy": 0.5, "response_tokens_mean": 20.0, "truncated_share": 0.1,
    "teacher_entropy": 0.4, "teacher_agreement": 0.7, "teacher_neginf_share": 0.0,
}  # fmt: skip
VOCABULARY = 100  # a uniform distribution over it has an entropy of 4.605 nats


def warnings_of(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return sentences and logged names of a stage that goes from one kind of step to another."""
    sentences: list[str] = []
    guards = Guards(sentences.append, VOCABULARY)
    lines = [{"step": i, **HEALTHY, **(before if i < WINDOW else after)} for i in range(3 * WINDOW)]
    return sentences, [name for line in lines for name in guards.look_at(line)]


def test_a_healthy_stage_raises_nothing():
    assert warnings_of({}, {}) == ([], [])


@pytest.mark.parametrize(
    ("before", "after", "name", "sentence"),
    [
        ({}, {"routed_fkl": 0.0}, "never routed", r"step 19: no token .*forward KL .*10 steps"),
        ({}, {"routed_fkl": 1.0}, "always routed", r"step 19: every token .*forward KL .*10 steps"),
        # a mean of 0.05 is crossed when the last of ten steps at 0.5 has left the window
        ({}, {"entropy": 0.01}, "entropy collapse", r"step 19: entropy fell from 0\.5 to 0\.01 nats"),
        # (4 * 20 + 6 * 60) / 10 = 44 is the first mean above 2 * 20
        ({}, {"response_tokens_mean": 60.0}, "length inflation", r"step 15: .*from 20 to 44 tokens"),
        # (4 * 0.4 + 6 * 0.1) / 10 = 0.22 is above half of 0.4, (3 * 0.4 + 7 * 0.1) / 10 = 0.19 is not
        ({"reward_mean": 0.4}, {"reward_mean": 0.1}, "reward fell", r"step 16: .*reward fell from 0\.4 to 0\.19\b"),
        # (3 * 0.4 + 7 * 4.6) / 10 = 3.34 and (1 * 0.4 + 9 * 4.6) / 10 = 4.18 lie about 0.9 * 4.605 = 4.145
        ({}, {"teacher_entropy": 4.6}, "teacher flat", r"step 18: the teacher's entropy is 4\.18 nats"),
        (
            {},
            {"teacher_agreement": 0.0},
            "teacher disagrees",
            r"step 19: the sampled token .*teacher's most probable",
        ),
        # six of ten steps at 0.9 are 0.54, five are 0.45
        (
            {},
            {"teacher_neginf_share": 0.9},
            "teacher rules out",
            r"step 15: the teacher .*\b54% of the sampled tokens",
        ),
        ({"truncated_share": 0.6}, {}, "truncation", r"step 9: 60% of the responses .*length limit"),
    ],
)
def test_each_problem_is_reported_once_in_its_own_words(
    before: dict[str, Any], after: dict[str, Any], name: str, sentence: str
):
    sentences, names = warnings_of(before, after)
    assert names == [name]
    assert len(sentences) == 1
    assert re.match(sentence, sentences[0])


def test_columns_that_a_method_does_not_have_raise_nothing():
    assert warnings_of({"routed_fkl": None, "entropy": None}, {"routed_fkl": None, "entropy": None}) == ([], [])


def test_a_loss_that_is_not_a_number_is_reported_once_and_changes_no_mean():
    sentences: list[str] = []
    guards = Guards(sentences.append)
    lines = [
        {"step": i, **HEALTHY, "loss": float("nan"), "entropy": float("nan") if i == 3 else 0.5} for i in range(25)
    ]
    assert [name for line in lines for name in guards.look_at(line)] == ["non-finite"]
    (sentence,) = sentences
    assert re.match(r"step 0: the loss is nan; .*learning rate", sentence)


@pytest.mark.pitfall(
    "a teacher that breaks while it teaches looks like a hard task",
    area="vLLM",
    guard="`adapters/loop/guards.py` warns by the teacher's entropy, agreement and share of impossible tokens in the step log",
    evidence="without the three signs of a teacher these stages train without a warning",
)
@pytest.mark.parametrize(
    ("scale", "warned"),
    # The logits of a whole teacher times this: next to nothing is flat, and a large number leaves one token of each position.
    [(1.0, set[str]()), (1e-3, {"teacher flat"}), (200.0, {"teacher rules out"})],
    ids=["whole", "flat", "one token"],
)
@pytest.mark.parametrize("method", [OPD(), AOPD(top_k=5), GKD(lmbda=1)], ids=["opd", "aopd", "gkd"])
def test_a_broken_teacher_is_named_while_it_teaches(method: LoopAdapter, scale: float, warned: set[str]):
    teacher = local_teacher()
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight.mul_(scale)
    log, sentences = list[dict[str, Any]](), list[str]()
    ctx = replace(stage({"steps": WINDOW, "optimizer": {"lr": 1e-6}}, log), teacher=teacher, warn=sentences.append)
    method.train_stage(ctx)
    named = {name for line in log for name in line["warnings"] if name.startswith("teacher")}
    assert named - {"teacher disagrees"} == warned
    assert bool(warned) <= any("the teacher" in sentence for sentence in sentences)


@given(st.integers(0, 10_000), st.floats(0.01, 20.0), st.integers(1, 12))
def test_the_entropy_of_a_top_k_is_a_lower_bound_that_is_exact_for_all_tokens_and_for_none_preferred(
    seed: int, scale: float, k: int
):
    logits = scale * torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits[2] = 0.0  # flat
    rows = logits.log_softmax(-1)
    exact = -(rows.exp() * rows).sum(-1)
    top = rows.topk(k)
    bound = entropy_of(TeacherScores(rows[:, 0], top.indices, top.values))
    assert bound is not None
    assert bool((bound <= exact + 1e-9).all())
    assert bound[2].item() == pytest.approx(math.log(12))
    if k == 12:
        assert torch.allclose(bound, exact, atol=1e-9)
