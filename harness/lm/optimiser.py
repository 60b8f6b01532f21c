"""One optimiser update over micro-batches, for the warm-up and every adapter that uses the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.training import Optimizer
from harness.errors import NotFiniteError
from harness.lm.ranks import current_ranks, local_part, whole
from harness.lm.rollouts import Batch


@dataclass(frozen=True)
class UpdateResult:
    """What an update did: total loss with penalties, gradient norm before clipping, and its learning rate."""

    loss: float
    grad_norm: float
    lr: float


class Updater:
    """AdamW over a module's trainable parameters, with clipping and a schedule over `total_updates`."""

    def __init__(self, module: nn.Module, settings: Optimizer, total_updates: int) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.grad_clip = settings.grad_clip
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        factor = schedule(settings, total_updates)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def update(
        self,
        batches: Iterable[Batch],
        loss_of: Callable[[Batch], Tensor],
        penalties: Iterable[Callable[[], Tensor]] = (),
    ) -> UpdateResult:
        """Add up the gradients of `loss_of` over micro-batches and of each penalty once, clip, step.

        `loss_of` returns a micro-batch's share of the whole loss, so the sum is the loss of one big batch. If several
        processes train, `batches` are this process's; the gradients of all processes are added, and each steps its part of the
        weights. Raises `NotFiniteError`, before the weights change, if the loss or the gradient is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = [_backward(loss_of(batch)) for batch in batches]
        further = [_backward(penalty()) for penalty in penalties]
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.grad_clip))
        # The only point of an update at which the host waits for the device.
        *values, norm = torch.stack([*losses, *further, norm.double()]).tolist()
        total = sum(current_ranks().gather(_in_order(values[: len(losses)])))
        total = _in_order([total, *values[len(losses) :]])
        if not math.isfinite(total) or not math.isfinite(norm):
            raise NotFiniteError(
                f"loss {total} or gradient norm {norm} is not finite; lower the learning rate or grad_clip"
            )
        lr = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        return UpdateResult(total, norm, lr)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimiser and schedule for a snapshot."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore optimiser and schedule from a snapshot."""
        kept = state["optimizer"]
        parts = {
            place: {name: local_part(self.parameters[place], value) for name, value in moments.items()}
            for place, moments in kept["state"].items()
        }
        self.optimizer.load_state_dict({**kept, "state": parts})
        self.scheduler.load_state_dict(state["scheduler"])


def _backward(loss: Tensor) -> Tensor:
    """Add a loss's gradients to the parameters', and return its value, still on the device."""
    loss.backward()
    return whole(loss.detach()).double()


def _in_order(values: list[float]) -> float:
    """Return a sum that is rounded after each term; Python's `sum` compensates for rounding since version 3.12."""
    total = 0.0
    for value in values:
        total += value
    return total


def schedule(settings: Optimizer, total: int) -> Callable[[int], float]:
    """Return a function from the update's number, from 0, to the factor on the learning rate.

    It is linear warm-up over `warmup_steps` updates, then constant, or linear or cosine decay that reaches 0 at `total`.
    """

    def factor(update: int) -> float:
        if update < settings.warmup_steps:
            return (update + 1) / (settings.warmup_steps + 1)
        done = (update - settings.warmup_steps) / max(1, total - settings.warmup_steps)
        if settings.schedule == "linear":
            return 1 - min(1.0, done)
        if settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor
