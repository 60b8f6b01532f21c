"""Divergences over the vocabulary, and the mass outside a teacher's top tokens, equal dense autograd in value and gradient."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from adapters.loop.divergences import forward_kl, generalised_jsd, reverse_kl, top_k_forward_kl
from adapters.loop.tokens import Tokens
from harness.lm import output_layer as tiled
from harness.lm import tiles
from harness.lm.kernels import model_divergence
from harness.lm.logprobs import Divergence, Head, TeacherRequest, divergence_of, selected_logprobs, teacher_scores
from harness.lm.tiles import ModelRows
from tests.support.dense import TILES, VARIANTS, N, V, assert_same_leaf_gradients, full, inputs

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


BETAS = [0.0, 0.1, 0.5, 1.0]


def _refuse(logq: Tensor, logp: Tensor) -> Tensor:
    raise LookupError("the closed form was to be taken")


def _model(hidden: Tensor, head: Head) -> ModelRows:
    """Return a teacher of the head's weights, another temperature and another order of states."""
    bias = None if head.bias is None else head.bias.detach().clone()
    return ModelRows(hidden.flip(0).detach(), replace(head, weight=head.weight.detach(), bias=bias, temperature=1.3))


@pytest.mark.parametrize("whole", [True, False], ids=["one chunk", "chunks of 3 rows"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_known_divergence_from_a_model_equals_dense_autograd(
    variant: str, beta: float, whole: bool, monkeypatch: pytest.MonkeyPatch
):
    if not whole:
        monkeypatch.setattr(tiles, "ROW_ELEMENTS", 6 * V)
        monkeypatch.setattr(tiles, "TILES", {"cpu": (3, 4)})
        monkeypatch.setattr(model_divergence, "BLOCK_ELEMENTS", 8)
    hidden, head, _, above = inputs(variant)
    leaves, theirs = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None], _model(hidden, head)
    found = divergence_of(hidden, head, theirs, _refuse, beta)
    expected = generalised_jsd(full(hidden, head).log_softmax(-1), theirs(slice(None)), beta)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    pairs = [torch.autograd.grad((side * above[:, 0]).sum(), leaves) for side in (found, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mass", ["neither", "the teacher", "the student"])
def test_a_known_divergence_is_right_where_a_side_puts_no_mass(mass: str, beta: float):
    hidden, head, _, above = inputs("bias")
    assert head.bias is not None
    theirs = _model(hidden, head)
    assert theirs.head.bias is not None
    with torch.no_grad():
        for side, bias in (("the student", head.bias), ("the teacher", theirs.head.bias)):
            if mass != side:
                bias[V - 1] = -torch.inf
    found = divergence_of(hidden, head, theirs, _refuse, beta)
    q, p = full(hidden, head).log_softmax(-1).exp(), theirs(slice(None)).exp()
    m = beta * p + (1 - beta) * q
    if beta in (0, 1):
        first, second = (p, q) if beta == 0 else (q, p)
        expected = (torch.xlogy(first, first) - torch.xlogy(first, second)).sum(-1)
    else:
        parts = [(torch.xlogy(side, side) - torch.xlogy(side, m)).sum(-1) for side in (p, q)]
        expected = beta * parts[0] + (1 - beta) * parts[1]
    torch.testing.assert_close(found, expected)
    assert expected.isfinite().all() != (mass == {0.0: "the teacher", 1.0: "the student"}.get(beta))
    if expected.isfinite().all():
        grads = torch.autograd.grad((found * above[:, 0]).sum(), [hidden, head.weight])
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("sure", [1.0, 30.0, 90.0, 110.0, 1000.0])
def test_a_known_divergence_in_float32_is_that_of_float64_however_sure_both_sides_are(sure: float, beta: float):
    # The products of these states are the logits themselves, so both precisions have the same ones.
    states, theirs = sure * torch.randn(2, 6, 300, generator=torch.Generator().manual_seed(5))
    results: list[list[Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        hidden, head = states.to(dtype).requires_grad_(), Head(torch.eye(300, dtype=dtype))
        found = divergence_of(hidden, head, ModelRows(theirs.to(dtype), head), _refuse, beta)
        results.append([found.detach().double(), torch.autograd.grad(found.sum(), hidden)[0].double()])
    for single, double in zip(*results, strict=True):
        assert double.isfinite().all()
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5 * sure * max(1.0, float(double.abs().max())))


def test_no_positions_have_no_known_divergence_and_zero_gradients():
    hidden, head, _, _ = inputs("bias", rows=0)
    found = divergence_of(hidden, head, _model(hidden, head), _refuse, 0.5)
    assert found.shape == (0,)
    assert not torch.autograd.grad(found.sum(), head.weight)[0].any()


def test_few_tokens_are_multiplied_once_for_a_known_divergence(monkeypatch: pytest.MonkeyPatch):
    products: list[int] = []
    monkeypatch.setattr(Head, "products", lambda self, states: products.append(1) or states @ self.weight.T)
    hidden, head, _, _ = inputs("plain")
    for elements, expected in ((2**26, 2), (6 * V, 8)):  # the latter: three chunks forward, one tile backward
        products.clear()
        monkeypatch.setattr(tiles, "ROW_ELEMENTS", elements)
        divergence_of(hidden, head, _model(hidden, head), _refuse, 0.5).sum().backward()
        assert len(products) == expected


def _number(logq: Tensor, logp: Tensor) -> Tensor:
    return reverse_kl(logq.detach(), logp)


def test_a_divergence_taken_as_a_number_has_no_gradient():
    hidden, head, _, _ = inputs("plain")
    found = divergence_of(hidden, head, lambda rows: torch.full((N, V), -2.0)[rows], _number)
    assert not torch.autograd.grad(found.sum(), hidden)[0].any()


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
