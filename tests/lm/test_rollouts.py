"""Which tokens are trained on and with which weights: exact ids, the stop token included, in one batch or in many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.lm.logprobs import StudentForward
from harness.lm.rollouts import Batch, Reduction, Rollout, make_batches
from harness.lmeval.library import TaskLibrary
from tests.support.models import assert_same_gradients, byte_renderer, gradients, qwen3, response_tokens, rollout

PAD = 0
# Longest first: prompt 5 6 7 with answer 9 8 and stop 0, then prompt 5 with answer 7 and stop 0; the stop IS the pad id.
LONG, SHORT = rollout([5, 6, 7], [9, 8, PAD]), rollout([5], [7, PAD])
REDUCTIONS: list[Reduction] = ["sequence_mean", "token_mean"]


def test_exactly_the_response_is_supervised_with_its_stop_token_even_where_pad_is_eos():
    (batch,) = make_batches([SHORT, LONG], "sequence_mean", None)
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 8, 0], [5, 7, 0, 0, 0, 0]]
    # position t predicts token t + 1: tokens 9 8 0 are predicted at 2 3 4, tokens 7 0 at 0 1
    assert batch.predicts.nonzero().tolist() == [[0, 2], [0, 3], [0, 4], [1, 0], [1, 1]]
    assert batch.targets.tolist() == [9, 8, 0, 7, 0]


def test_every_target_is_the_token_after_its_predicting_position():
    (batch,) = make_batches([SHORT, LONG, rollout([1, 2], [3])], "token_mean", None)
    shifted = torch.cat([batch.input_ids[:, 1:], torch.full((3, 1), -1)], dim=1)
    assert torch.equal(shifted[batch.predicts], batch.targets)


def test_sequence_mean_weighs_sequences_alike_and_token_mean_tokens():
    (by_sequence,) = make_batches([LONG, SHORT], "sequence_mean", None)
    (by_token,) = make_batches([LONG, SHORT], "token_mean", None)
    # two sequences of 3 and 2 tokens: 1/(2*3) and 1/(2*2); or 1/5 each
    assert by_sequence.weights.tolist() == pytest.approx([1 / 6] * 3 + [1 / 4] * 2)
    assert by_token.weights.tolist() == pytest.approx([1 / 5] * 5)


def test_micro_batch_mean_is_the_token_mean_of_each_micro_batch_by_its_share_of_the_sequences():
    other = rollout([1, 2], [3])
    (whole,) = make_batches([LONG, SHORT, other], "micro_batch_mean", None)
    # one micro-batch of 3 + 2 + 1 tokens: the token mean
    assert whole.weights.tolist() == pytest.approx([1 / 6] * 6)
    # two of the three sequences have 3 + 2 tokens, the third has 1: 2/3 of 1/5 each, and 1/3
    parts = make_batches([LONG, SHORT, other], "micro_batch_mean", 2)
    assert [part.weights.tolist() for part in parts] == [pytest.approx([2 / 15] * 5), pytest.approx([1 / 3])]
    # micro-batches of one sequence: the sequence mean
    single = [w for part in make_batches([LONG, SHORT, other], "micro_batch_mean", 1) for w in part.weights.tolist()]
    assert single == pytest.approx([1 / 9] * 3 + [1 / 6] * 2 + [1 / 3])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(1, 7))
def test_micro_batch_mean_is_the_released_code_s_reduction(lengths: list[int], micro_batch: int):
    """The released code adds up `masked_mean(loss, mask) * rows / mini_batch` over micro-batches (verl's `agg_loss`)."""
    rollouts = [rollout([1], [2] * length) for length in lengths]
    batches = make_batches(rollouts, "micro_batch_mean", micro_batch)
    found = expected = 0.0
    for batch in batches:
        rows, width = batch.predicts.shape
        mask = batch.predicts.double()
        loss = torch.arange(rows * width, dtype=torch.float64).reshape(rows, width).sin()
        found += float((loss[batch.predicts] * batch.weights.double()).sum())
        expected += float((loss * mask).sum() / mask.sum()) * rows / len(rollouts)
    assert found == pytest.approx(expected, abs=1e-6)


def test_empty_responses_are_left_out_and_do_not_dilute_the_rest():
    empty = rollout([1, 2, 3], [])
    (batch,) = make_batches([LONG, empty, SHORT], "sequence_mean", None)
    assert batch.weights.tolist() == pytest.approx([1 / 6] * 3 + [1 / 4] * 2)
    assert make_batches([empty], "token_mean", 2) == []
    assert make_batches([], "token_mean", None) == []


@pytest.mark.pitfall(
    "a prompt whose length is counted in characters is masked wrongly, and the loss looks normal",
    area="Small machines",
    guard="`harness/lm/rollouts.py` counts token ids",
    evidence="the mask begins at the number of characters",
)
def test_where_tokens_have_several_characters_exactly_the_reference_is_supervised(library: TaskLibrary):
    renderer = byte_renderer()
    examples = library.load("tiny_weather").training_examples(renderer, 3)
    (batch,) = make_batches([Rollout(e, e.target, "stop") for e in examples], "token_mean", None)
    for row, supervised in enumerate(batch.predicts):
        text = renderer.tokenizer.decode(batch.input_ids[row, 1:][supervised[:-1]])
        assert text == batch.rollouts[row].example.doc["target"] + "<|im_end|>"


ROLLOUTS = st.lists(
    st.builds(rollout, st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=6)),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(ROLLOUTS, st.sampled_from(REDUCTIONS), st.one_of(st.none(), st.integers(1, 4)))
def test_over_all_micro_batches_every_response_token_appears_once_and_weights_add_up_to_one(
    rollouts: list[Rollout], reduction: Reduction, micro_batch: int | None
):
    batches = make_batches(rollouts, reduction, micro_batch)
    filled = [r for r in rollouts if r.response]
    assert response_tokens(batches) == sum(len(r.response) for r in filled)
    assert sorted(t for b in batches for t in b.targets.tolist()) == sorted(t for r in filled for t in r.response)
    assert all(len(b.input_ids) <= (micro_batch or 99) for b in batches)
    assert all(b.predicts.sum() == len(b.targets) == len(b.weights) for b in batches)
    assert sum(float(b.weights.sum()) for b in batches) == pytest.approx(1 if filled else 0, abs=1e-5)


SEQUENCES = [rollout([3, 4, 5], [6, 7, 2]), rollout([8], [9, 2]), rollout([3, 1, 4, 1, 5], [9]), rollout([5], [6] * 7)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_accumulate_to_the_loss_and_gradient_of_one_batch(reduction: Reduction, micro_batch: int):
    model = qwen3()
    student = StudentForward(model)

    def loss_and_gradients(batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = -(student(batch, batch.targets[:, None]).chosen[:, 0] * batch.weights).sum()
            loss.backward()
            total += loss.item()
        return total, gradients(model)

    whole = make_batches(SEQUENCES, reduction, None)
    parts = make_batches(SEQUENCES, reduction, micro_batch)
    assert (len(whole), len(parts)) == (1, -(-4 // micro_batch))
    loss, expected = loss_and_gradients(whole)
    accumulated, found = loss_and_gradients(parts)
    assert accumulated == pytest.approx(loss, abs=1e-10)
    assert_same_gradients(found, expected, 1e-10)
