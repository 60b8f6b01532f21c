"""Checks of AOPD's gate: its limits are the policy gradient and forward KL, and tokens with A_t = 0 take the right branch."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from pydantic import ValidationError
from torch import Tensor

from adapters.aopd import AOPD
from adapters.conformance.gradients import sample_tokens
from adapters.conformance.outcomes import ConformanceError, DoesNotApply
from adapters.conformance.small_stage import AdapterUnderTest
from adapters.loop.divergences import top_k_forward_kl
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import LoopAdapter

BRANCHES = ("forward KL", "the policy gradient")
ENDS = {"log_ratio": math.inf, "prob_diff": 1.0}
Slopes = tuple[Tensor, Tensor]


def has_its_limits(subject: AdapterUnderTest) -> None:
    """At one limit of its threshold a gated method is the policy gradient everywhere, at the other forward KL."""
    adapter = _gated(subject)
    tokens, _ = sample_tokens(adapter, subject.vocabulary, scored=True)
    for gate, end in ENDS.items():
        for threshold, routed in ((end, False), (-end, True)):
            found, outcome = _slopes(_set(adapter, gate, threshold), tokens)
            expected = _forward_kl(adapter, tokens) if routed else _policy_gradient(adapter, tokens)
            _compare(f"gate {gate}, threshold {threshold:g}", outcome, found, expected, routed)


def routes_advantage_zero(subject: AdapterUnderTest) -> None:
    """A token with A_t = 0 has forward KL under log_ratio, and a policy gradient of zero under prob_diff."""
    adapter = _gated(subject)
    tokens, _ = sample_tokens(adapter, subject.vocabulary, scored=True)
    level = replace(tokens, logp=tokens.logq_old)
    for gate, expected in (("log_ratio", True), ("prob_diff", False)):
        found, outcome = _slopes(_set(adapter, gate, 0.0), level)
        if outcome.routed is None or not bool((outcome.routed == expected).all()):
            right, wrong = BRANCHES if expected else BRANCHES[::-1]
            raise ConformanceError(
                f"gate {gate} at threshold 0 sends tokens with A_t = 0 to {wrong}, expected {right}; compare with "
                f"{'>=' if expected else '>'}"
            )
        if not expected and float(found[0].abs().max()) > 0:
            raise ConformanceError("a token with A_t = 0 has a policy gradient; multiply by the advantage")


def _gated(subject: AdapterUnderTest) -> LoopAdapter:
    adapter = subject.method
    if not {"gate", "threshold"} <= set(type(adapter).model_fields):
        raise DoesNotApply("it has no `gate` with a `threshold`")
    return adapter


def _set(adapter: LoopAdapter, gate: str, threshold: float) -> LoopAdapter:
    try:
        gated = type(adapter).model_validate({**adapter.model_dump(), "gate": gate})
    except ValidationError as error:
        raise DoesNotApply(f"its gate is not AOPD's: {error.errors()[0]['msg']}") from error
    # A method may refuse a limit as an option, but its loss has that limit, so validation is bypassed.
    return gated.model_copy(update={"threshold": threshold})


def _slopes(adapter: LoopAdapter, tokens: Tokens) -> tuple[Slopes, TokenLosses]:
    """Return d loss / d log q at the sampled token (N,) and on the teacher's top K (N, K)."""
    own, top = (value.detach().requires_grad_() for value in (tokens.logq, tokens.top_logq))
    outcome = adapter.token_losses(replace(tokens, logq=own, top_logq=top))
    found = torch.autograd.grad(outcome.losses.sum(), (own, top), allow_unused=True, materialize_grads=True)
    return (found[0], found[1]), outcome


def _policy_gradient(adapter: LoopAdapter, tokens: Tokens) -> Slopes:
    return -float(getattr(adapter, "weight", 1.0)) * tokens.advantage, torch.zeros_like(tokens.top_logq)


def _forward_kl(adapter: LoopAdapter, tokens: Tokens) -> Slopes:
    top = tokens.top_logq.detach().requires_grad_()
    tail = getattr(adapter, "tail", AOPD.model_fields["tail"].default)
    (slope,) = torch.autograd.grad(top_k_forward_kl(replace(tokens, top_logq=top), tail).sum(), top)
    return torch.zeros_like(tokens.logq), float(getattr(adapter, "fkl_weight", 1.0)) * slope


def _compare(where: str, outcome: TokenLosses, found: Slopes, expected: Slopes, routed: bool) -> None:
    if outcome.routed is None or not bool((outcome.routed == routed).all()):
        share = 0.0 if outcome.routed is None else float(outcome.routed.double().mean())
        raise ConformanceError(
            f"{where}: {share:.0%} of the tokens go to forward KL, expected {int(routed):.0%}; look at the gate's sign"
        )
    if any(not torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(found, expected, strict=True)):
        raise ConformanceError(
            f"{where}: the gradient is not that of pure {'forward KL on the top K' if routed else 'policy gradient'}; one "
            "branch leaks into the other, or is scaled"
        )
