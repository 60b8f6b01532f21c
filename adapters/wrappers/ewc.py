"""Elastic weight consolidation (EWC, arXiv 1612.00796): weights that matter for earlier tasks move less.

The penalty is lambda/2 sum_i F_i (theta_i - theta*_i)^2. theta* are the weights at the stage's start. F is the diagonal of the
empirical Fisher information there: the mean over items of earlier tasks of the squared gradient of log q(reference | prompt).
F is estimated again at each stage's start, over all earlier tasks, so no state is kept besides the checkpoint.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapters.wrappers.wrapper import PenaltyWrapper, penalised
from harness.adapter import Penalties, StageContext
from harness.lm.precision import autocast
from harness.lm.ranks import is_split, local_part
from harness.lm.rollouts import Example, Rollout, make_batches
from harness.lm.seeding import derive_seed, permutation

Importance = dict[str, tuple[Tensor, Tensor]]


class EWC(PenaltyWrapper):
    """Penalise changes of weights by their importance for earlier tasks; the first stage has no penalty."""

    formula: ClassVar[str] = (
        "that of the wrapped trainer + strength / 2 sum_i F_i (theta_i - theta*_i)^2, once an update"
    )
    paper: ClassVar[str] = "Kirkpatrick et al. 2017 (arXiv 1612.00796)"
    deviation: ClassVar[str] = (
        "F is estimated again at each stage's start over all earlier tasks, with one anchor theta*; the paper keeps one for "
        "each task."
    )

    strength: float = Field(default=400.0, gt=0, description="the paper's lambda; 400 in TRACE (arXiv 2310.06762)")
    items: int = Field(default=128, gt=0, description="training items of all earlier tasks that F is estimated on")

    @model_validator(mode="after")
    def _inner_trains_the_penalised_weights(self) -> EWC:
        if self.inner.capabilities.replaces_weights:
            raise ValueError(
                f"{self.of.adapter!r} trains parameters that replace the model's own, which EWC penalises; put EWC inside it"
            )
        return self

    def changed(self, ctx: StageContext) -> StageContext:
        """Return the stage with the penalty."""
        if not ctx.past:
            return ctx
        order = permutation(len(ctx.past), derive_seed(ctx.seed, "fisher"))
        importance, split = fisher(ctx, [ctx.past[i] for i in order[: self.items]]), Importance()

        def penalty_of(student: nn.Module) -> Tensor:
            # The loop may have split the parameters over processes by now; each keeps its own part.
            for name, p in student.named_parameters() if not split else ():
                if name in importance:
                    weight, anchor = importance.pop(name)
                    split[name] = (local_part(p, weight), local_part(p, anchor))
            return self.penalty(student, split)

        return penalised(ctx, Penalties(weight=(penalty_of,)))

    def penalty(self, student: nn.Module, importance: Importance) -> Tensor:
        """Return lambda/2 sum_i F_i (theta_i - theta*_i)^2, a scalar; `importance` has F and theta* by parameter."""
        named = dict(student.named_parameters())
        terms = [(weight * (named[name] - anchor) ** 2).sum() for name, (weight, anchor) in importance.items()]
        # Terms of parameters that are split over processes cannot be stacked, so they are added one by one.
        total = sum(terms[1:], terms[0]) if is_split(terms[0]) else torch.stack(terms).sum()
        return 0.5 * self.strength * total


def fisher(ctx: StageContext, examples: list[Example]) -> Importance:
    """Return the diagonal Fisher information and the present value of each trainable parameter, by name."""
    named = {name: p for name, p in ctx.student.named_parameters() if p.requires_grad}
    squares = {name: torch.zeros_like(p) for name, p in named.items()}
    for example in examples:
        target = example.target[: ctx.training.max_new_tokens]  # cut as in training on references
        (batch,) = make_batches([Rollout(example, target, "stop")], "token_mean", None, ctx.device)
        ctx.student.zero_grad(set_to_none=True)
        with autocast(ctx.device, ctx.training.autocast):
            ctx.student(batch, batch.targets[:, None]).chosen.sum().backward()
        for name, p in named.items():
            if p.grad is not None:
                squares[name] += p.grad**2
    ctx.student.zero_grad(set_to_none=True)
    return {name: (square / len(examples), named[name].detach().clone()) for name, square in squares.items()}
