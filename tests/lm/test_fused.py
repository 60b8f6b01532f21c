"""The Triton kernels, through Triton's interpreter on a CPU, equal full logits with autograd in float64."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters.loop.divergences import generalised_jsd, reverse_kl
from harness.lm import output_layer, tiles
from harness.lm.logprobs import Head, TeacherRequest, divergence_of, selected_logprobs, teacher_scores
from harness.lm.tiles import ModelRows
from tests.support.dense import VARIANTS, Largest, N, V, assert_same_leaf_gradients, dense, full, inputs

fused_passes = pytest.importorskip("harness.lm.kernels.fused_passes")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU, tests/lm/test_gpu.py runs the kernels"
    ),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the kernels on the CPU, over tiles smaller than the inputs."""
    monkeypatch.setattr(output_layer, "FUSED", {"cpu"})
    monkeypatch.setitem(tiles.TILES, "cpu", (3, 4))


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_equal_dense_autograd(variant: str):
    hidden, head, ids, above = inputs(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    found, expected = selected_logprobs(hidden, head, ids), full(hidden, head).log_softmax(-1)
    torch.testing.assert_close(found.chosen, expected.gather(-1, ids), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.entropy, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.logsumexp, full(hidden, head).logsumexp(-1), rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found.chosen * above).sum(), (dense(hidden, head, ids) * above).sum(), leaves)


@pytest.mark.parametrize(
    "held_of", ["the top", *(pytest.param(each, marks=pytest.mark.slow) for each in ("others", "all"))]
)
@pytest.mark.parametrize("variant", [pytest.param("plain", marks=pytest.mark.slow), "all"])
def test_the_rest_outside_held_ids_equals_dense_autograd(variant: str, held_of: str):
    hidden, head, ids, above = inputs(variant)
    held = {"the top": ids[:, 1:], "others": (ids + 3) % V, "all": torch.arange(V).repeat(N, 1)}[held_of]
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    found, logp = selected_logprobs(hidden, head, ids, held), full(hidden, head).log_softmax(-1)
    outside = logp.scatter(-1, held, -torch.inf).logsumexp(-1)
    assert found.rest is not None
    torch.testing.assert_close(found.rest, outside, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.entropy, -(logp.exp() * logp).sum(-1), rtol=0, atol=1e-10)
    ours, theirs = (found.chosen * above).sum(), (logp.gather(-1, ids) * above).sum()
    if held_of != "all":
        ours, theirs = ours + (found.rest * above[:, 0]).sum(), theirs + (outside * above[:, 0]).sum()
    assert_same_leaf_gradients(ours, theirs, leaves)


@pytest.mark.parametrize("top_k", [1, 4, V])
@pytest.mark.parametrize("variant", ["all"])
def test_the_teachers_top_is_that_of_full_logits(variant: str, top_k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "ROW_ELEMENTS", 3 * V)
    hidden, head, ids, _ = inputs(variant)
    scores = teacher_scores(hidden, head, ids[:, 0], TeacherRequest(top_k=top_k, entropy=True))
    expected = full(hidden, head).log_softmax(-1)
    torch.testing.assert_close(scores.top_logprobs, expected.topk(top_k).values, rtol=0, atol=1e-10)
    assert (scores.top_ids == expected.topk(top_k).indices).all()
    torch.testing.assert_close(scores.sampled, expected.gather(-1, ids[:, :1])[:, 0], rtol=0, atol=1e-10)
    assert scores.entropy is not None
    torch.testing.assert_close(scores.entropy, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-10)


def test_the_top_of_a_vocabulary_of_many_groups_is_that_of_full_logits():
    draw = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(5, 4, generator=draw), torch.randn(2500, 4, generator=draw)
    # The largest of a row stand in one group, in neighbours, or at the vocabulary's end.
    weight[100:120] *= 4
    weight[2499] *= 9
    scores = teacher_scores(hidden, Head(weight), torch.zeros(5, dtype=torch.long), TeacherRequest(top_k=32))
    expected = (hidden @ weight.T).log_softmax(-1).topk(32)
    torch.testing.assert_close(scores.top_logprobs, expected.values)
    assert (scores.top_ids == expected.indices).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("variant", ["plain", "all"])
def test_divergences_equal_dense_autograd(variant: str, beta: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "ROW_ELEMENTS", 6 * V)
    hidden, head, _, above = inputs(variant)
    theirs = ModelRows(hidden.flip(0).detach(), replace(head, temperature=1.3))
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]

    def refuse(logq: Tensor, logp: Tensor) -> Tensor:
        raise LookupError("the kernels were to compute it")

    found = divergence_of(hidden, head, theirs, refuse, beta)
    expected = generalised_jsd(full(hidden, head).log_softmax(-1), theirs(slice(None)).detach(), beta)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found * above[:, 0]).sum(), (expected * above[:, 0]).sum(), leaves)


@pytest.mark.parametrize("beta", [0.3, 0.0])
def test_tokens_that_neither_side_gives_any_mass_have_no_part_in_a_divergence(beta: float):
    hidden, head, _, above = inputs("bias")
    assert head.bias is not None
    head.bias.data[3] = -torch.inf
    theirs = ModelRows(hidden.flip(0).detach(), replace(head, weight=head.weight.detach(), bias=head.bias.detach()))
    found = divergence_of(hidden, head, theirs, reverse_kl, beta)
    expected = generalised_jsd(full(hidden, head).log_softmax(-1), theirs(slice(None)), beta)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found * above[:, 0]).sum(), (expected * above[:, 0]).sum(), [hidden, head.weight])


def test_another_teachers_rows_and_other_divergences_need_no_kernel():
    hidden, head, _, _ = inputs("plain")
    theirs = ModelRows(hidden.flip(0).detach(), head)
    expected = reverse_kl(full(hidden, head).log_softmax(-1), theirs(slice(None)))
    for found in (
        divergence_of(hidden, head, theirs, reverse_kl),
        divergence_of(hidden, head, lambda rows: theirs(rows), reverse_kl, 1.0),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str):
    hidden, head, ids, above = inputs("bias")
    assert head.bias is not None
    leaves = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    leaves.pop(frozen).requires_grad_(False)
    ours = (selected_logprobs(hidden, head, ids).chosen * above).sum()
    assert_same_leaf_gradients(ours, (dense(hidden, head, ids) * above).sum(), list(leaves.values()))


@pytest.mark.slow
def test_the_largest_tensor_of_a_pass_is_a_tile_or_the_heads_own_gradient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tiles.TILES, "cpu", (4, 32))
    head = Head(torch.randn(96, 3, requires_grad=True))
    hidden, ids = torch.randn(8, 3, requires_grad=True), torch.randint(96, (8, 4))
    with Largest() as largest:
        selected_logprobs(hidden, head, ids, ids[:, 1:]).chosen.sum().backward()
    assert largest.elements == head.weight.numel() < 8 * 96


def test_the_check_of_a_device_passes_here_and_turns_the_kernels_off_where_they_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(tiles.TILES, "cpu", (100, 1000))
    assert fused_passes.kernels_work(torch.device("cpu"), output_layer.SelectedLogProbs.apply)

    def smallest(raw: Tensor, _: Tensor, __: Head, k: int) -> tuple[Tensor, Tensor]:
        found = raw.topk(k, largest=False)
        return found.values, found.indices

    monkeypatch.setattr(fused_passes, "largest", smallest)
    with pytest.warns(UserWarning, match="differ from full logits"):
        assert not fused_passes.kernels_work(torch.device("cpu"), output_layer.SelectedLogProbs.apply)

    def broken(*_: object) -> None:
        raise OSError("no C compiler")

    monkeypatch.setattr(fused_passes, "RunningSums", broken)
    with pytest.warns(UserWarning, match="no C compiler"):
        assert not fused_passes.kernels_work(torch.device("cpu"), output_layer.SelectedLogProbs.apply)


def test_the_kernels_are_used(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise LookupError

    monkeypatch.setattr(fused_passes, "RunningSums", refuse)
    hidden, head, ids, _ = inputs("plain")
    with pytest.raises(LookupError):
        selected_logprobs(hidden, head, ids)


def test_bfloat16_weights_have_float32_log_probabilities():
    hidden, head, ids, above = inputs("plain")
    narrow = Head(head.weight.detach().bfloat16().requires_grad_())
    states = hidden.detach().bfloat16().requires_grad_()
    found = selected_logprobs(states, narrow, ids).chosen
    assert found.dtype == torch.float32
    (found * above).sum().backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in (states, narrow.weight)]
    (dense(exact[0], Head(exact[1]), ids) * above).sum().backward()
    for ours, theirs in zip((states, narrow.weight), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.05, atol=0.05)


def test_a_logit_of_minus_infinity_has_no_part_in_the_entropy():
    hidden, weight = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[1.0], [2.0], [-torch.inf]]).double()
    found = selected_logprobs(hidden, Head(weight), torch.zeros(2, 1, dtype=torch.long))
    expected = torch.tensor([1.0, 2.0]).double().log_softmax(-1)
    torch.testing.assert_close(found.entropy, -(expected.exp() * expected).sum().expand(2))


def test_no_tokens_and_ids_at_the_edges_of_tiles():
    hidden, head, _, _ = inputs("plain")
    ids = torch.tensor([[0, 3, 4, 10]]).repeat(len(hidden), 1)
    torch.testing.assert_close(
        selected_logprobs(hidden, head, ids).chosen, dense(hidden, head, ids), rtol=0, atol=1e-10
    )
    assert selected_logprobs(hidden[:0], head, ids[:0]).chosen.shape == (0, 4)


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.compiled_kernels"]
    sizes = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)
    assert len(sizes) == 12
    assert all(sizes.values())
