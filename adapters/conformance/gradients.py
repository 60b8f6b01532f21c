"""Gradient checks: the loop's gradient is that of the loss per token, and no branch of the loss has lost its gradient."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapters.conformance.dense import dense_gradient, scoring_model, tokens_from_logprobs
from adapters.conformance.outcomes import ConformanceError, DoesNotApply
from adapters.conformance.recording import TINY, distance, record_updates, size
from adapters.conformance.small_stage import AdapterUnderTest
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import LoopAdapter

TOLERANCE = 1e-6
RATE = 0.02
ROWS = 96


def equals_autograd(subject: AdapterUnderTest) -> None:
    """The gradient is that of the method's loss per token on dense float64 logits."""
    # A second, equal stage, because training may move the teacher of the first one.
    adapter, untouched = subject.method, subject.stage(temperature=0.7)
    for number, update in enumerate(record_updates(adapter, subject.stage(temperature=0.7)), start=1):
        rollouts = [rollout for batch in update.batches for rollout in batch.rollouts]
        expected = dense_gradient(adapter, untouched, rollouts)
        if not (off := distance(update.gradient, expected)) <= TOLERANCE:
            raise ConformanceError(
                f"the gradient of update {number} is {off:.1e} of its size away from autograd on dense logits (at most "
                f"{TOLERANCE:g}); look at how losses meet tokens: masks, weights 1/|y|, and which policy each term takes"
            )


def accumulates(subject: AdapterUnderTest) -> None:
    """Gradients over micro-batches of two add up to that of one batch."""
    if subject.looped.reduction == "micro_batch_mean":
        raise DoesNotApply("reduction: micro_batch_mean averages each micro-batch alone")
    whole, parts = (
        record_updates(subject.adapter, subject.stage(steps=2, micro_batch=rows), RATE) for rows in (None, 2)
    )
    for number, (one, several) in enumerate(zip(whole, parts, strict=True), start=1):
        if len(several.batches) <= len(one.batches):
            raise ConformanceError("`micro_batch` 2 made no more batches than null; split with `make_batches`")
        if not (off := distance(several.gradient, one.gradient)) <= TOLERANCE:
            times = size(several.gradient) / max(size(one.gradient), TINY)
            raise ConformanceError(
                f"update {number} over micro-batches of two has {times:.3g} times the gradient of one batch, {off:.1e} of its "
                "size away; normalise by the whole batch's sequences or tokens, not by each micro-batch's"
            )


def no_branch_is_detached(subject: AdapterUnderTest) -> None:
    """Every branch of the loss has a gradient where its value moves with the student."""
    adapter = subject.method
    tokens, logits = sample_tokens(
        adapter, subject.vocabulary, scoring_model(subject.method, subject.stage()) is not None
    )
    _check_inputs(adapter, tokens)
    outcome = adapter.token_losses(tokens)
    slope = _slope(outcome.losses, logits)
    for name, rows, count in _branches(adapter, outcome):
        flat_rows = int((slope[rows] == 0).all(-1).sum())
        if flat_rows and (count == "each" or flat_rows == int(rows.sum())):
            raise ConformanceError(
                f"{flat_rows} of {int(rows.sum())} {name} have no gradient in the student's logits; something there is "
                "detached or clamped, so it trains nothing"
            )


def sample_tokens(adapter: LoopAdapter, vocabulary: int, scored: bool) -> tuple[Tokens, Tensor]:
    """Return tokens at positions with flat to peaked distributions, and the student's logits (N, V) behind them.

    Half of the tokens are drawn from the student, half at random. Teachers are near the student, flatter, or unrelated to it.
    `scored` says whether there is a teacher.
    """
    draw = torch.Generator().manual_seed(11)
    z, p, r = (torch.randn(ROWS, vocabulary, generator=draw, dtype=torch.float64) for _ in range(3))
    kind, scale = torch.arange(ROWS)[:, None] % 3, torch.linspace(0.1, 8, ROWS, dtype=torch.float64)[:, None]
    teacher = torch.where(kind == 0, p, torch.where(kind == 1, z + 0.3 * p, 0.5 * z)) * scale
    logits = (z * scale).requires_grad_()
    likely = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
    anything = torch.randint(vocabulary, (ROWS,), generator=draw)
    sampled = torch.where(torch.arange(ROWS) % 2 == 0, likely, anything)
    uniform = torch.rand(ROWS, generator=draw, dtype=torch.float64)
    credit = torch.where(torch.arange(ROWS) % 5 == 0, 1.0, -0.7).double()
    logp, logref = teacher.log_softmax(-1) if scored else None, (r * scale).log_softmax(-1)
    return tokens_from_logprobs(adapter, logits.log_softmax(-1), logp, sampled, logref, credit, uniform), logits


def _slope(losses: Tensor, leaf: Tensor) -> Tensor:
    """Return d sum(losses) / d leaf, zeros where there is none."""
    if not losses.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(losses.sum(), leaf, allow_unused=True, materialize_grads=True)[0]


def _branches(adapter: LoopAdapter, outcome: TokenLosses) -> list[tuple[str, Tensor, str]]:
    """Return the branches of a loss: name, mask (N,), and whether `each` of its tokens or at least `one` needs a gradient."""
    if outcome.routed is None:
        whole = torch.ones(len(outcome.losses), dtype=torch.bool)
        return [("tokens", whole, "one" if adapter.objective is None else "each")]
    return [("tokens routed to forward KL", outcome.routed, "each"), ("tokens not routed", ~outcome.routed, "one")]


def _check_inputs(adapter: LoopAdapter, tokens: Tokens) -> None:
    """Raise `ConformanceError` for a loss whose value on some token changes with a student's input that has no gradient."""
    inputs = {
        "logq": "log q of the sampled token",
        "top_logq": "log q on the teacher's top K",
        "rest_logq": "log q of all outside it",
    }
    for name, text in inputs.items():
        if getattr(tokens, name) is None:
            continue
        leaf: Tensor = getattr(tokens, name).detach().requires_grad_()
        before = adapter.token_losses(replace(tokens, **{name: leaf})).losses
        moved = adapter.token_losses(replace(tokens, **{name: leaf.detach() - 1e-4})).losses
        slope = _slope(before, leaf).reshape(len(leaf), -1)
        silent = ((moved - before).abs() > 1e-9) & (slope == 0).all(-1)
        if silent.any():
            raise ConformanceError(
                f"on {int(silent.sum())} of {len(silent)} tokens the loss moves with {text}, but has no gradient there; "
                "something in that branch is detached, so it trains nothing"
            )
