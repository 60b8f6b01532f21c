"""The Triton kernels, through Triton's interpreter on a CPU, equal full logits with autograd in float64."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from harness.lm import output_layer
from harness.lm.logprobs import Head, selected_logprobs
from tests.support.dense import VARIANTS, assert_same_leaf_gradients, dense, full, inputs

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
    monkeypatch.setitem(output_layer.TILES, "cpu", (3, 4))


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_equal_dense_autograd(variant: str):
    hidden, head, ids, above = inputs(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    found, expected = selected_logprobs(hidden, head, ids), full(hidden, head).log_softmax(-1)
    torch.testing.assert_close(found.chosen, expected.gather(-1, ids), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.entropy, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.logsumexp, full(hidden, head).logsumexp(-1), rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found.chosen * above).sum(), (dense(hidden, head, ids) * above).sum(), leaves)


def test_the_kernels_are_used(monkeypatch: pytest.MonkeyPatch):
    from harness.lm import fused

    def refuse(*_: object, **__: object) -> None:
        raise LookupError

    monkeypatch.setattr(fused, "_launch", refuse)
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
