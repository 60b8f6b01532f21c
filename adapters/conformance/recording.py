"""Record the gradients that `train_stage` gives to its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.conformance.outcomes import DoesNotApply
from adapters.conformance.small_stage import train_small_stage
from harness.adapter import Adapter, StageContext
from harness.lm.optimiser import UpdateResult
from harness.lm.rollouts import Batch

Gradient = dict[str, Tensor]
TINY = 1e-12


@dataclass
class Update:
    """One optimiser update: its micro-batches, the gradient of each, and the gradients of the penalties."""

    batches: list[Batch] = field(default_factory=list[Batch])
    parts: list[Gradient] = field(default_factory=list[Gradient])
    penalties: list[Gradient] = field(default_factory=list[Gradient])

    @property
    def gradient(self) -> Gradient:
        """The sum over micro-batches and penalties."""
        return add_gradients([*self.parts, *self.penalties])


def record_updates(adapter: Adapter, ctx: StageContext, rate: float = 0.0) -> list[Update]:
    """Train a stage and return its updates; each one is a plain gradient descent step of size `rate`.

    Raises `DoesNotApply` for an adapter that does not use the stage's optimiser.
    """
    updates: list[Update] = []

    def make_updater(module: nn.Module, *_: object) -> Any:
        return RecordingUpdater(module, rate, updates)

    train_small_stage(adapter, replace(ctx, make_updater=make_updater))
    if not updates:
        raise DoesNotApply("it does not update through the optimiser of the stage, so its gradients are not visible")
    return updates


class RecordingUpdater:
    """Keeps every gradient; takes the place of `harness.lm.optimiser.Updater`."""

    def __init__(self, module: nn.Module, rate: float, updates: list[Update]) -> None:
        self.module, self.rate, self.updates = module, rate, updates

    def update(
        self,
        batches: Iterable[Batch],
        loss_of: Callable[[Batch], Tensor],
        penalties: Iterable[Callable[[], Tensor]] = (),
    ) -> UpdateResult:
        """Keep the gradients of micro-batches and penalties, then take a plain step."""
        update = Update(list(batches))
        update.parts = [gradient_of(loss_of(batch), self.module) for batch in update.batches]
        update.penalties = [gradient_of(penalty(), self.module) for penalty in penalties]
        self.updates.append(update)
        self._step(update.gradient)
        return UpdateResult(0.0, 0.0, self.rate)

    @torch.no_grad()
    def _step(self, gradient: Gradient) -> None:
        for name, parameter in self.module.named_parameters():
            if self.rate and name in gradient:
                parameter -= self.rate * gradient[name]


def gradient_of(loss: Tensor, module: nn.Module) -> Gradient:
    """Return the gradient of a loss with respect to a module's trainable parameters, by name; zeros where it has none."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not loss.requires_grad:
        return {name: torch.zeros_like(p) for name, p in named.items()}
    module.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for name, p in named.items()}


def add_gradients(gradients: Iterable[Gradient], weights: Iterable[float] | None = None) -> Gradient:
    """Return the sum of gradients, weighted by `weights` where given."""
    total: Gradient = {}
    parts = list(gradients)
    for part, weight in zip(parts, [1.0] * len(parts) if weights is None else weights, strict=True):
        for name, value in part.items():
            total[name] = total[name] + weight * value if name in total else weight * value
    return total


def flatten(gradient: Gradient) -> Tensor:
    """Return a gradient as one vector."""
    return torch.cat([value.flatten() for value in gradient.values()]) if gradient else torch.zeros(1)


def size(gradient: Gradient) -> float:
    """Return |gradient| over all parameters."""
    return float((flatten(gradient) ** 2).sum().sqrt())


def distance(found: Gradient, expected: Gradient) -> float:
    """Return |found - expected| / |expected| over all parameters."""
    return size(add_gradients([found, expected], [1, -1])) / max(size(expected), TINY)
