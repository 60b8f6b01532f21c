"""The reference for gradients: the loss over full float64 logits, sequence by sequence, with the adapter's loss per token.

It uses none of the loop's batches, masks, weights, chunks or teacher requests, only the responses that were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.conformance.outcomes import DoesNotApply
from adapters.conformance.recording import Gradient, gradient_of
from adapters.loop.tokens import Tokens, uniform_draws
from adapters.loop.training_loop import LoopAdapter
from harness.adapter import StageContext
from harness.lm.rollouts import Reduction, Rollout
from harness.teachers.local import LocalTeacher


def dense_gradient(adapter: LoopAdapter, ctx: StageContext, rollouts: Sequence[Rollout]) -> Gradient:
    """Return the gradient of the loss over `rollouts` of a stage's first step, by parameter name."""
    losses = adapter.token_losses(dense_tokens(adapter, ctx, rollouts)).losses
    weights = token_weights(adapter.reduction, [len(r.response) for r in rollouts])
    return gradient_of((losses * weights).sum(), ctx.student)


def token_weights(reduction: Reduction, lengths: Sequence[int]) -> Tensor:
    """Return each token's weight, (N,): 1 / (B |y|) for `sequence_mean`, else 1 / sum |y|, as for one micro-batch.

    `lengths` are those of the B responses.
    """
    whole = sum(lengths)
    shares = [1 / (len(lengths) * n) if reduction == "sequence_mean" else 1 / whole for n in lengths for _ in range(n)]
    return torch.tensor(shares, dtype=torch.float64)


def dense_tokens(adapter: LoopAdapter, ctx: StageContext, rollouts: Sequence[Rollout]) -> Tokens:
    """Return the tokens of `rollouts`, computed from full log-probabilities (N, V)."""
    temperature = adapter.temperature(ctx.training)
    own = [r.example.prompt for r in rollouts]
    logq = over_responses(ctx.student.model, own, rollouts, temperature)
    reference = ctx.reference.model if adapter.scores_start and ctx.reference else None
    logref = None if reference is None else over_responses(reference, own, rollouts, temperature).detach()
    targets = torch.tensor([token for r in rollouts for token in r.response])
    teacher = scoring_model(adapter, ctx)
    logp = None
    if teacher is not None:
        prompts = adapter.teacher_prompts(ctx, list(rollouts)) or own
        logp = over_responses(teacher, prompts, rollouts, temperature).detach()
    credit = torch.tensor([r.credit for r in rollouts for _ in r.response], dtype=torch.float64)
    uniform = uniform_draws(ctx.seed, 0, rollouts)
    return tokens_from_logprobs(adapter, logq, logp, targets, logref, credit, uniform)


def tokens_from_logprobs(
    adapter: LoopAdapter,
    logq: Tensor,
    logp: Tensor | None,
    targets: Tensor,
    logref: Tensor | None,
    credit: Tensor,
    uniform: Tensor,
) -> Tokens:
    """Return tokens from log-probabilities (N, V) of student, teacher and reference; the student sampled them.

    `targets`, `credit` and `uniform` are (N,).
    """
    request, column = adapter.teacher_request, targets[:, None]
    seen = torch.full_like(logq, float("nan")).detach() if logp is None else logp
    top = seen.topk(request.top_k, dim=-1) if request.top_k and logp is not None else seen[:, :0].sort()
    sampled = logq.gather(-1, column)[:, 0]
    return Tokens(
        logq=sampled,
        logq_old=sampled.detach(),
        logp=seen.gather(-1, column)[:, 0],
        top_logq=logq.gather(-1, top.indices),
        top_logp=top.values,
        entropy_p=-(seen.exp() * seen).sum(-1) if request.entropy else None,
        divergence=adapter.divergence(logq, seen) if request.vocabulary else None,
        logref=None if logref is None else logref.gather(-1, column)[:, 0],
        credit=credit,
        rest_logq=logq.scatter(-1, top.indices, -torch.inf).logsumexp(-1) if request.rest else None,
        uniform=uniform,
    )


def over_responses(model: Any, prompts: Sequence[list[int]], rollouts: Sequence[Rollout], temperature: float) -> Tensor:
    """Return log-probabilities (N, V) at the positions that predict response tokens, one sequence at a time."""
    rows: list[Tensor] = []
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        logits = model(input_ids=torch.tensor([prompt + rollout.response]), use_cache=False).logits[0]
        rows.append((logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1])
    return torch.cat(rows)


def scoring_model(adapter: LoopAdapter, ctx: StageContext) -> Any:
    """Return the model that scores an adapter's tokens, None where none does."""
    scorer = adapter.scorer(ctx)
    if scorer is None:
        return None
    if not isinstance(scorer, LocalTeacher):
        raise DoesNotApply("it scores with its own teacher, whose distribution cannot be read here")
    return scorer.model
