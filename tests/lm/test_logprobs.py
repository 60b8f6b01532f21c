"""Chosen log-probabilities, their gradients, entropies and teacher scores equal dense autograd, never holding all logits.

Oracle throughout: `log_softmax` of full logits in float64, differentiated by torch.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.loop.divergences import forward_kl, generalised_jsd, reverse_kl, top_k_forward_kl
from adapters.loop.tokens import Tokens
from harness.errors import ModelError
from harness.lm import output_layer as tiled
from harness.lm import tiles
from harness.lm.logprobs import (
    Divergence,
    Head,
    StudentForward,
    StudentRequest,
    TeacherRequest,
    check_head,
    divergence_of,
    head_of,
    selected_logprobs,
    teacher_scores,
)
from harness.lm.rollouts import make_batches
from tests.support.dense import VARIANTS, C, H, Largest, N, V, assert_same_leaf_gradients, dense, full, inputs
from tests.support.models import assert_same_gradients, dense_logprobs, gradients, qwen3, rollout

# Of 7 tokens and 11 words: single cells, edges that do not come out even, one side cut, one tile larger than all.
TILES = [(1, 1), (3, 4), (100, 4), (3, 100), (100, 100)]


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


DIVERGENCES: dict[str, Divergence] = {
    "forward KL": forward_kl,
    "reverse KL": reverse_kl,
    "JSD": partial(generalised_jsd, beta=0.3),
}


@pytest.mark.parametrize("rows_in_chunk", [1, 3, 100])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_divergences_over_the_vocabulary_equal_dense_autograd(
    variant: str, divergence: str, rows_in_chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiled, "CHUNK_ELEMENTS", rows_in_chunk * V)
    hidden, head, ids, above = inputs(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    rows = teacher_scores(hidden.flip(0).detach(), head, ids[:, 0], TeacherRequest(vocabulary=True)).rows
    assert rows is not None
    logp = full(hidden.flip(0), head).log_softmax(-1).detach()
    found = divergence_of(hidden, head, rows, DIVERGENCES[divergence])
    expected = DIVERGENCES[divergence](full(hidden, head).log_softmax(-1), logp)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found * above[:, 0]).sum(), (expected * above[:, 0]).sum(), leaves)


def _number(logq: Tensor, logp: Tensor) -> Tensor:
    return reverse_kl(logq.detach(), logp)


def test_a_divergence_taken_as_a_number_has_no_gradient():
    hidden, head, _, _ = inputs("plain")
    found = divergence_of(hidden, head, lambda rows: torch.full((N, V), -2.0)[rows], _number)
    assert not torch.autograd.grad(found.sum(), hidden)[0].any()


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
    head = Head(torch.randn(vocabulary, width, requires_grad=True), torch.randn(vocabulary, requires_grad=True))
    hidden, ids = torch.randn(tokens, width, requires_grad=True), torch.randint(vocabulary, (tokens, columns))
    with Largest() as ours:
        selected_logprobs(hidden, head, ids).chosen.sum().backward()
        scores = teacher_scores(hidden, head, ids[:, 0], TeacherRequest(top_k=columns, entropy=True, vocabulary=True))
        assert scores.rows is not None
        divergence_of(hidden, head, scores.rows, reverse_kl).sum().backward()
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


SEQUENCES = [rollout([3, 4, 5], [6, 7, 2]), rollout([8], [9, 2]), rollout([3, 1, 4, 1, 5], [9]), rollout([5, 6], [2])]


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


SHAPE = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {"num_key_value_heads": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_scaled_capped_and_shifted_as_each_architecture_does(family: str):
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES[family]})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    head_bias = getattr(model.get_output_embeddings(), "bias", None)
    if head_bias is not None:
        nn.init.normal_(head_bias)
    (batch,) = make_batches(SEQUENCES, "sequence_mean", None)
    with torch.no_grad():
        found = StudentForward(model)(batch, torch.arange(24).expand(len(batch.targets), -1)).chosen
        expected = model(input_ids=batch.input_ids).logits.log_softmax(-1)[batch.predicts]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


STRANGE: dict[str, dict[str, Any]] = {
    "RecurrentGemma": {
        "vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 1, "lru_width": 32, "logits_soft_cap": 1.0, "attention_window_size": 16,
    },
    "FalconH1": {
        "vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 8, "mamba_chunk_size": 16, "lm_head_multiplier": 0.2, "head_dim": 16, "initializer_range": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", STRANGE)
def test_an_architecture_that_makes_its_logits_otherwise_is_refused(family: str):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**STRANGE[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    if family == "RecurrentGemma":
        model.get_input_embeddings().weight.data.mul_(20)
    with pytest.raises(ModelError, match=rf"{family}ForCausalLM computes its logits in an unknown way"):
        check_head(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_known_architectures_are_taken_in_every_precision(family: str, dtype: torch.dtype):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES[family]})
    check_head(getattr(transformers, f"{family}ForCausalLM")(config).eval().to(dtype))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rest_is_all_that_is_not_held_with_its_gradient(
    variant: str, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "TILES", {"cpu": tile})
    hidden, head, ids, above = inputs(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    held = ids[:, 1:]  # with a repetition where a draw has one
    found = selected_logprobs(hidden, head, ids, held)
    logq = full(hidden, head).log_softmax(-1)
    rest = logq.scatter(-1, held, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(found.rest, rest)
    assert found.rest is not None
    ours, theirs = (found.chosen * above).sum() + (found.rest * above[:, 2]).sum(), (logq.gather(-1, ids) * above).sum()
    assert_same_leaf_gradients(ours, theirs + (rest * above[:, 2]).sum(), leaves)


def test_a_rest_of_nothing_has_no_mass_and_no_gradient():
    hidden, head, ids, _ = inputs("plain")
    found = selected_logprobs(hidden, head, ids, torch.arange(V).expand(N, -1))
    assert found.rest is not None
    assert found.rest.isneginf().all()
    logp = torch.zeros(N, V, dtype=torch.float64).log_softmax(-1)
    empty = torch.zeros(N)
    loss = top_k_forward_kl(Tokens(empty, empty, empty, logp, logp, rest_logq=found.rest), "bucket")
    assert not torch.autograd.grad(loss.sum(), hidden)[0].any()


@pytest.mark.parametrize("sure", [5.0, 17.0, 30.0, 60.0])
def test_the_buckets_gradient_in_float32_is_that_of_dense_float64_however_sure_the_student_is(sure: float):
    raw, ids = torch.tensor([[sure, 0.0, -1.0, -5.0]]), torch.tensor([[0, 1]])
    logp = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    logits, empty = raw.clone().requires_grad_(), torch.zeros(1)
    found = selected_logprobs(logits, Head(torch.eye(4)), ids, ids)
    tokens = Tokens(empty, empty, empty, found.chosen, logp[:, :2], rest_logq=found.rest)
    loss = top_k_forward_kl(tokens, "bucket").sum()
    exact = raw.double().requires_grad_()
    logq, p = exact.log_softmax(-1), logp.double().exp()
    outside = logq[:, 2:].logsumexp(-1)
    expected = (p[:, :2] * (p[:, :2].log() - logq[:, :2])).sum() + (0.3 * (math.log(0.3) - outside)).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)
    assert theirs.abs().max() > 0.1


@pytest.mark.parametrize("ids", [[[3], [V]], [[-1], [0]]])
def test_ids_that_have_no_row_are_refused(ids: list[list[int]]):
    hidden, head, _, _ = inputs("plain", rows=2)
    with pytest.raises(ValueError, match=f"expected 0 to {V - 1}, the rows of the output layer"):
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


@pytest.mark.parametrize("teacher_too", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_and_their_gradients_are_right_where_the_student_puts_no_mass(divergence: str, teacher_too: bool):
    hidden, head, _, above = inputs("bias")
    assert head.bias is not None
    with torch.no_grad():
        head.bias[V - 1] = -torch.inf
    some = full(hidden.flip(0), head)[:, :-1].detach()
    last = torch.full((N, 1), -torch.inf if teacher_too else 0.0, dtype=torch.float64)
    logp = torch.cat([some, last], -1).log_softmax(-1)
    found = divergence_of(hidden, head, lambda rows: logp[rows], DIVERGENCES[divergence])
    logq = full(hidden, head)[:, :-1].log_softmax(-1)
    expected = DIVERGENCES[divergence](logq, logp[:, :-1])
    if not teacher_too:
        # Only the teacher has mass there: infinitely much for the forward KL, beta p log(p / beta p) for the JSD.
        lost = {"forward KL": math.inf, "reverse KL": 0.0, "JSD": 0.3 * -math.log(0.3)}[divergence]
        expected = expected + lost * logp[:, -1].exp()
    torch.testing.assert_close(found, expected)
    if expected.isfinite().all():
        leaves = [hidden, head.weight]
        assert_same_leaf_gradients((found * above[:, 0]).sum(), (expected * above[:, 0]).sum(), leaves)


def test_a_model_without_an_output_layer_is_refused():
    model = transformers.Qwen3Model(qwen3().config)
    with pytest.raises(ModelError, match="Qwen3Model has no linear output layer"):
        head_of(model)


def test_under_autocast_the_head_still_works_in_its_weights_precision():
    hidden, head, ids, above = inputs("plain")
    single = Head(head.weight.detach().float().requires_grad_())
    narrow = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = selected_logprobs(narrow, single, ids).chosen
    expected = dense(narrow.detach().double(), Head(single.weight.detach().double()), ids)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    gradient, weight = torch.autograd.grad((found * above).sum(), [narrow, single.weight])
    assert (gradient.dtype, weight.dtype) == (torch.bfloat16, torch.float32)
    exact = dense(hidden.detach().requires_grad_(), head, ids)
    (reference,) = torch.autograd.grad((exact * above).sum(), head.weight)
    assert float((weight.double() - reference).norm() / reference.norm()) < 0.02


def test_a_student_under_autocast_is_close_to_itself_without():
    model = qwen3(dtype=torch.float32)
    (batch,) = make_batches(SEQUENCES, "sequence_mean", None)
    ids = batch.targets[:, None]

    def run(autocast: bool) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            chosen = StudentForward(model)(batch, ids).chosen
        (chosen[:, 0] * batch.weights).sum().backward()
        return chosen.detach(), torch.cat([g.flatten() for g in gradients(model).values()])

    (chosen, found), (exact, expected) = run(True), run(False)
    assert chosen.dtype == found.dtype == torch.float32
    assert not torch.equal(chosen, exact)
    torch.testing.assert_close(chosen, exact, rtol=0, atol=0.2)
    assert float(nn_cosine(found, expected)) > 0.99


def nn_cosine(one: Tensor, other: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(one, other, dim=0)
