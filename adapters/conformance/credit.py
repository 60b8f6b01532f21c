"""Credit check: a method without a teacher follows its labels, or its rewards, and does not flee them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import torch

from adapters.conformance.dense import over_responses, scoring_model
from adapters.conformance.errors import ConformanceError, DoesNotApply
from adapters.conformance.recording import Gradient, flat, gradient_of, recorded
from adapters.conformance.subject import Subject
from harness.adapter import StageContext
from harness.lm.rollouts import Rollout


def raises_what_it_credits(subject: Subject) -> None:
    """Without a teacher, a step makes references more probable, or responses with a high reward more than the others."""
    adapter = subject.method
    if adapter.requirements.teacher != "none" or scoring_model(adapter, subject.stage()) is not None:
        raise DoesNotApply("a teacher takes part, so `direction` looks where it goes")
    ctx = subject.stage()
    for update in recorded(adapter, ctx):
        rollouts = [rollout for batch in update.batches for rollout in batch.rollouts]
        uphill = _uphill(ctx, rollouts, _worth(ctx, rollouts))
        if not float(flat(update.gradient) @ flat(uphill)) < 0:
            what = "responses with a high reward" if _rewarded(rollouts) else "references"
            raise ConformanceError(
                f"a step against the gradient makes {what} less probable; look at the sign of the loss, and of the credit"
            )


def _rewarded(rollouts: Sequence[Rollout]) -> bool:
    return any(rollout.reward is not None for rollout in rollouts)


def _worth(ctx: StageContext, rollouts: Sequence[Rollout]) -> list[float]:
    """Return 1 for each reference, or each response's reward over the mean of its prompt's, taken from the task anew."""
    if not _rewarded(rollouts):
        return [1.0] * len(rollouts)
    groups: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for rollout in rollouts:
        groups[tuple(rollout.example.prompt)].append(ctx.reward(rollout))
    worth = [ctx.reward(r) - fmean(groups[tuple(r.example.prompt)]) for r in rollouts]
    if not any(worth):
        raise DoesNotApply("all responses to a prompt have the same reward, so none is to become more probable")
    return worth


def _uphill(ctx: StageContext, rollouts: Sequence[Rollout], worth: Sequence[float]) -> Gradient:
    """Return the gradient of sum_y worth(y) mean_t log q(y_t)."""
    rows = over_responses(ctx.student.model, [r.example.prompt for r in rollouts], rollouts, 1.0)
    targets = torch.tensor([token for r in rollouts for token in r.response])
    shares = [value / len(r.response) for value, r in zip(worth, rollouts, strict=True) for _ in r.response]
    own = rows.gather(-1, targets[:, None])[:, 0]
    return gradient_of((own * torch.tensor(shares, dtype=own.dtype)).sum(), ctx.student)
