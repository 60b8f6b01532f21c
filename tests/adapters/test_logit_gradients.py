"""How losses pull at logits: the closed forms equal dense autograd, and AOPD's asymmetry has its derived size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapters.aopd import AOPD
from adapters.loop.logit_gradients import gradient_at, gradient_at_chosen, norms, pull_on
from adapters.loop.tokens import Tokens
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD

MODE = 1


def tokens_of(logits: Tensor, logp: Tensor, sampled: Tensor, top_k: int) -> tuple[Tokens, Tensor, Tensor]:
    """Return tokens, the chosen log-probabilities (N, 1 + K) with gradient to `logits`, and their ids."""
    top = logp.topk(top_k)
    ids = torch.cat([sampled[:, None], top.indices], 1)
    chosen = logits.log_softmax(-1).gather(-1, ids)
    own = logp.gather(-1, sampled[:, None])[:, 0]
    rest = logits.log_softmax(-1).scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return Tokens(chosen[:, 0], chosen[:, 0].detach(), own, chosen[:, 1:], top.values, rest_logq=rest), chosen, ids


def expected_pull(adapter: LoopAdapter, q: float, p: float) -> float:
    """Return the expected descent step on the mode's logit, both tokens of the vocabulary sampled with their share."""
    logq = torch.tensor([[q, 1 - q]] * 2, dtype=torch.float64).log().requires_grad_()
    logp = torch.tensor([[p, 1 - p]] * 2, dtype=torch.float64).log()
    tokens, chosen, ids = tokens_of(logq, logp, torch.tensor([0, 1]), 2)
    pulls = pull_on(MODE, gradient_at_chosen(adapter.token_losses(tokens).losses, chosen, ids), chosen.detach())
    return float(q * pulls[0] + (1 - q) * pulls[1])


@pytest.mark.parametrize(
    ("adapter", "q", "pull"),
    [
        # p = 0.99. AOPD up: q (1-q) log(p/q) + (1-q)(p-q) = 0.985 * 0.015 * 0.0050633 + 0.015 * 0.005
        (AOPD(top_k=2), 0.985, 0.0001498),
        # AOPD down: q (p-q) - q (1-q) log((1-p)/(1-q)) = -0.995 * 0.005 - 0.995 * 0.005 * 0.6931
        (AOPD(top_k=2), 0.995, -0.0084234),
        # OPD: q (1-q) (log(p/q) - log((1-p)/(1-q))) = 0.014775 * (0.0050633 + 0.4054651)
        (OPD(), 0.985, 0.0060656),
        # and 0.004975 * (-0.0050378 - 0.6931472)
        (OPD(), 0.995, -0.0034735),
    ],
)
def test_at_a_confident_position_aopd_pulls_down_harder_than_up(adapter: LoopAdapter, q: float, pull: float):
    assert expected_pull(adapter, q, 0.99) == pytest.approx(pull, abs=2e-7)


@pytest.mark.parametrize("off", [0.0005, -0.0005])
def test_to_first_order_the_pulls_are_those_derived(off: float):
    p = 0.9
    q = p - off
    first_order = 2 * (1 - q) * (p - q) if off > 0 else -2 * q * (q - p)
    assert expected_pull(AOPD(top_k=2), q, p) == pytest.approx(first_order, rel=0.02)


KINDS = [AOPD(top_k=3), AOPD(top_k=3, tail="bucket"), AOPD(top_k=3, threshold=math.inf), OPD()]


@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_norms_and_pulls_equal_dense_autograd(seed: int, adapter: LoopAdapter):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 7, generator=generator, dtype=torch.float64).requires_grad_()
    logp = (2 * torch.randn(6, 7, generator=generator, dtype=torch.float64)).log_softmax(-1)
    sampled = torch.randint(0, 7, (6,), generator=generator)
    tokens, chosen, ids = tokens_of(logits, logp, sampled, 3)
    losses = adapter.token_losses(tokens).losses
    gradient = gradient_at_chosen(losses, chosen, ids)
    (dense,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    rest = tokens.rest_logq
    assert rest is not None
    at_rest = gradient_at(losses, rest)
    assert torch.allclose(norms(gradient, chosen.detach(), ids, at_rest, rest.detach()), dense.abs().sum(-1))
    mode = ids[:, MODE]
    assert torch.allclose(pull_on(MODE, gradient, chosen.detach(), at_rest), -dense.gather(-1, mode[:, None])[:, 0])


def test_a_loss_that_does_not_use_the_chosen_tokens_pulls_at_none():
    chosen = torch.randn(4, 3, requires_grad=True)
    other = torch.randn(4, requires_grad=True)
    ids = torch.arange(12).view(4, 3)
    assert not gradient_at_chosen(2 * other, chosen, ids).any()
    assert not gradient_at_chosen(torch.ones(4), chosen, ids).any()
