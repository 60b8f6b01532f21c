"""Guards in training: each problem is reported once, in its own words, and only when it occurs."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.loop.guards import WINDOW, Guards

HEALTHY = {"routed_fkl": 0.3, "entropy": 0.5, "response_tokens_mean": 20.0, "truncated_share": 0.1}


def warnings_of(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return sentences and logged names of a stage that goes from one kind of step to another."""
    sentences: list[str] = []
    guards = Guards(sentences.append)
    lines = [{"step": i, **HEALTHY, **(before if i < WINDOW else after)} for i in range(3 * WINDOW)]
    return sentences, [name for line in lines for name in guards.look_at(line)]


def test_a_healthy_stage_raises_nothing():
    assert warnings_of({}, {}) == ([], [])


@pytest.mark.parametrize(
    ("before", "after", "name", "sentence"),
    [
        ({}, {"routed_fkl": 0.0}, "never routed", "step 19: no token has gone to forward KL for 10 steps"),
        ({}, {"routed_fkl": 1.0}, "always routed", "step 19: every token has gone to forward KL for 10 steps"),
        # a mean of 0.05 is crossed when the last of ten steps at 0.5 has left the window
        ({}, {"entropy": 0.01}, "entropy collapse", "step 19: entropy fell from 0.5 to 0.01 nats per token"),
        # (4 * 20 + 6 * 60) / 10 = 44 is the first mean above 2 * 20
        ({}, {"response_tokens_mean": 60.0}, "length inflation", "step 15: responses grew from 20 to 44 tokens"),
        # (4 * 0.4 + 6 * 0.1) / 10 = 0.22 is above half of 0.4, (3 * 0.4 + 7 * 0.1) / 10 = 0.19 is not
        ({"reward_mean": 0.4}, {"reward_mean": 0.1}, "reward fell", "step 16: the mean reward fell from 0.4 to 0.19"),
        ({"truncated_share": 0.6}, {}, "truncation", "step 9: 60% of the responses are cut off at the length limit"),
    ],
)
def test_each_problem_is_reported_once_in_its_own_words(
    before: dict[str, Any], after: dict[str, Any], name: str, sentence: str
):
    sentences, names = warnings_of(before, after)
    assert names == [name]
    assert len(sentences) == 1
    assert sentences[0].startswith(sentence)


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
    assert sentence == "step 0: the loss is nan; expected a finite number; lower the learning rate"
