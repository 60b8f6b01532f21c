"""Chosen log-probabilities, their gradients, entropies and teacher scores equal dense autograd, never holding all logits.

Oracle throughout: `log_softmax` of full logits in float64, differentiated by torch.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.loop.divergences import reverse_kl
from harness.errors import ModelError
from harness.lm import output_layer as tiled
from harness.lm import tiles
from harness.lm.logprobs import (
    Head,
    StudentForward,
    StudentRequest,
    TeacherRequest,
    divergence_of,
    selected_logprobs,
    teacher_scores,
)
from harness.lm.rollouts import make_batches
from tests.support.dense import (
    SEQUENCES,
    TILES,
    VARIANTS,
    C,
    H,
    Largest,
    N,
    V,
    assert_same_leaf_gradients,
    dense,
    full,
    inputs,
)
from tests.support.models import assert_same_gradients, dense_logprobs, gradients, qwen3


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_equal_dense_autograd(
    variant: str, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "TILES", {"cpu": tile})
    hidden, head, ids, above = inputs(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    found = selected_logprobs(hidden, head, ids).chosen
    expected = dense(hidden, head, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found * above).sum(), (expected * above).sum(), leaves)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str):
    hidden, head, ids, above = inputs("bias")
    assert head.bias is not None
    leaves = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    leaves.pop(frozen).requires_grad_(False)
    ours, theirs = ((f(hidden, head, ids) * above).sum() for f in (_chosen, dense))
    assert_same_leaf_gradients(ours, theirs, list(leaves.values()))


def test_where_ids_are_not_refused_at_once_those_outside_have_no_score(monkeypatch: pytest.MonkeyPatch):
    hidden, head, ids, _ = inputs("plain")
    ids[2, 1], ids[3, 0] = V, -1
    with pytest.raises(ModelError, match="expected 0 to"):
        selected_logprobs(hidden, head, ids)
    monkeypatch.setattr(tiled, "REFUSES_IDS_AT_ONCE", set())
    found = selected_logprobs(hidden, head, ids).chosen
    assert found.isnan().nonzero().tolist() == [[2, 1], [3, 0]]


def _chosen(hidden: Tensor, head: Head, ids: Tensor) -> Tensor:
    return selected_logprobs(hidden, head, ids).chosen


def test_no_tensor_is_larger_than_the_heads_weight_though_the_logits_would_be(monkeypatch: pytest.MonkeyPatch):
    tokens, vocabulary, width, columns = 48, 640, 4, 5
    monkeypatch.setattr(tiles, "TILES", {"cpu": (16, 100)})
    monkeypatch.setattr(tiled, "CHUNK_ELEMENTS", 3 * vocabulary)
    monkeypatch.setattr(tiles, "ROW_ELEMENTS", 8 * vocabulary)
    head = Head(torch.randn(vocabulary, width, requires_grad=True), torch.randn(vocabulary, requires_grad=True))
    hidden, ids = torch.randn(tokens, width, requires_grad=True), torch.randint(vocabulary, (tokens, columns))
    with Largest() as ours:
        selected_logprobs(hidden, head, ids).chosen.sum().backward()
        scores = teacher_scores(hidden, head, ids[:, 0], TeacherRequest(top_k=columns, entropy=True, vocabulary=True))
        assert scores.rows is not None
        for beta in (None, 1.0):
            divergence_of(hidden, head, scores.rows, reverse_kl, beta).sum().backward()
    with Largest() as theirs:
        dense(hidden, head, ids).sum().backward()
    assert ours.elements == head.weight.numel() == vocabulary * width
    assert theirs.elements == tokens * vocabulary


def test_no_tokens_give_no_values_and_zero_gradients():
    hidden, head, ids, above = inputs("bias", rows=0)
    found = selected_logprobs(hidden, head, ids)
    assert found.chosen.shape == (0, C)
    assert found.entropy.shape == found.logsumexp.shape == (0,)
    (found.chosen * above).sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.shape == (V, H)
    assert not head.weight.grad.any()


def test_no_chosen_ids_give_an_empty_row_and_the_entropy():
    hidden, head, _, _ = inputs("plain")
    found = selected_logprobs(hidden, head, torch.zeros(N, 0, dtype=torch.long))
    assert found.chosen.shape == (N, 0)
    assert found.entropy.shape == (N,)


@pytest.mark.parametrize("variant", VARIANTS)
def test_entropy_and_logsumexp_are_those_of_the_full_distribution_and_carry_no_gradient(variant: str):
    hidden, head, ids, _ = inputs(variant)
    found = selected_logprobs(hidden, head, ids)
    logq = full(hidden, head).log_softmax(-1)
    torch.testing.assert_close(found.entropy, -(logq.exp() * logq).sum(-1).detach())
    torch.testing.assert_close(found.logsumexp, full(hidden, head).logsumexp(-1).detach())
    assert found.chosen.requires_grad
    assert not found.entropy.requires_grad
    assert not found.logsumexp.requires_grad


def test_uniform_logits_give_log_v_by_hand():
    found = selected_logprobs(torch.zeros(1, H), Head(torch.randn(8, H)), torch.tensor([[3]]))
    # softmax of zeros over 8 tokens is 1/8: log 1/8 = -2.0794415, entropy log 8
    assert found.chosen.item() == pytest.approx(-2.0794415)
    assert found.entropy.item() == pytest.approx(2.0794415)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-40, 40), min_size=2, max_size=9), st.floats(0.2, 3))
def test_probabilities_of_all_tokens_add_up_to_one(logits: list[float], temperature: float):
    size = len(logits)
    hidden, ids = torch.tensor([logits], dtype=torch.float64), torch.arange(size)[None]
    found = selected_logprobs(hidden, Head(torch.eye(size, dtype=torch.float64), temperature=temperature), ids)
    assert found.chosen.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert found.chosen.max().item() <= 1e-12
    assert -1e-9 <= found.entropy.item() <= torch.log(torch.tensor(float(size))).item() + 1e-9


def test_enormous_logits_stay_finite():
    hidden, head, ids, above = inputs("plain")
    found = selected_logprobs(hidden * 1e4, head, ids)
    (gradient,) = torch.autograd.grad((found.chosen * above).sum(), hidden)
    assert torch.isfinite(found.chosen).all()
    assert torch.isfinite(found.entropy).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("tile", [(3, 4), (100, 100)])
def test_bfloat16_is_close_to_float64_of_the_same_numbers(tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "TILES", {"cpu": tile})
    hidden, head, ids, above = inputs("plain")
    narrow = hidden.detach().bfloat16().requires_grad_()
    weight = head.weight.detach().bfloat16().requires_grad_()
    found = selected_logprobs(narrow, Head(weight), ids).chosen
    wide, wide_weight = narrow.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = dense(wide, Head(wide_weight), ids)
    assert found.dtype == torch.float32
    # bfloat16 keeps 8 bits: logits up to 8 are off by at most 2^-6
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.05)
    (found * above).sum().backward()
    (expected * above).sum().backward()
    for ours, theirs in ((narrow.grad, wide.grad), (weight.grad, wide_weight.grad)):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == torch.bfloat16
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 0.02


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_teacher_scores_equal_the_dense_distribution(
    variant: str, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "TILES", {"cpu": tile})
    monkeypatch.setattr(tiled, "LONGER", 2)
    hidden, head, ids, _ = inputs(variant)
    scores = teacher_scores(hidden, head, ids[:, 0], TeacherRequest(top_k=3, entropy=True))
    logp = full(hidden, head).log_softmax(-1).detach()
    torch.testing.assert_close(scores.entropy, -(logp.exp() * logp).sum(-1))
    expected = logp.topk(3)
    torch.testing.assert_close(scores.sampled, logp.gather(-1, ids[:, :1])[:, 0])
    torch.testing.assert_close(scores.top_logprobs, expected.values)
    assert torch.equal(scores.top_ids, expected.indices)
    assert not scores.sampled.requires_grad


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_student_forward_equals_full_logits_for_all_parameters(
    tie: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "TILES", {"cpu": (4, 10)})
    model = qwen3(tie=tie)
    (batch,) = make_batches(SEQUENCES, "sequence_mean", None)
    ids = torch.stack([batch.targets, (batch.targets + 1) % 24, batch.targets], dim=1)
    above = torch.randn(ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = StudentForward(model)(batch, ids, StudentRequest(temperature))
    (found.chosen * above).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    full = (model(input_ids=batch.input_ids).logits / temperature).log_softmax(-1)[batch.predicts]
    (full.gather(-1, ids) * above).sum().backward()
    torch.testing.assert_close(found.chosen, full.gather(-1, ids), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.entropy, -(full.exp() * full).sum(-1).detach())
    assert_same_gradients(ours, gradients(model), 1e-10)


def test_right_padding_without_a_mask_gives_what_each_sequence_gives_alone():
    model = qwen3()
    (batch,) = make_batches(SEQUENCES, "sequence_mean", None)
    together = StudentForward(model)(batch, batch.targets[:, None]).chosen[:, 0]
    separate: list[Tensor] = []
    for one in sorted(SEQUENCES, key=lambda r: len(r.prompt_and_response), reverse=True):
        logq, start = dense_logprobs(model, one.prompt_and_response), len(one.example.prompt)
        separate += [logq[start + i - 1, token] for i, token in enumerate(one.response)]
    torch.testing.assert_close(together, torch.stack(separate), rtol=0, atol=1e-10)


@pytest.mark.parametrize("ids", [[[3], [V]], [[-1], [0]]])
def test_ids_that_have_no_row_are_refused(ids: list[list[int]]):
    hidden, head, _, _ = inputs("plain", rows=2)
    with pytest.raises(ValueError, match=f"expected 0 to {V - 1}, .*output layer"):
        selected_logprobs(hidden, head, torch.tensor(ids))


@pytest.mark.parametrize("tile", TILES)
def test_a_token_without_any_mass_leaves_entropy_and_gradients_as_they_are(
    tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "TILES", {"cpu": tile})
    hidden, head, ids, above = inputs("bias")
    assert head.bias is not None
    with torch.no_grad():
        head.bias[V - 1] = -torch.inf
    ids = ids % (V - 1)
    found = selected_logprobs(hidden, head, ids)
    logq = full(hidden, head)[:, :-1].log_softmax(-1)
    torch.testing.assert_close(found.entropy, -(logq.exp() * logq).sum(-1).detach())
    leaves = [hidden, head.weight]
    assert_same_leaf_gradients((found.chosen * above).sum(), (logq.gather(-1, ids) * above).sum(), leaves)
