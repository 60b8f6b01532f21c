"""The weights that an optimiser changes, and their relation to the student: its own, master weights, or shards.

A stage trains through a `Trainable`. Its `module` is called for a forward pass, and the optimiser changes the module's
parameters. The student's own model generates inside `whole`, with the weights of the last `publish`. `close` leaves the
trained weights in the student, in its original precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.lm.logprobs import StudentForward


class Trainable(ABC):
    """The weights that a stage trains; see the module's docstring."""

    module: nn.Module

    @contextmanager
    def whole(self) -> Generator[None]:
        """Provide the published weights in the student's own model in this block."""
        yield

    @abstractmethod
    def publish(self) -> None:
        """Give the student's own model the current weights, after an update."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the weights for a snapshot, by the student's names."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the weights of a snapshot, and publish them."""

    @abstractmethod
    def close(self) -> None:
        """Leave the trained weights in the student, in its original precision."""


class OwnWeights(Trainable):
    """The student's own parameters, in their own precision."""

    def __init__(self, student: StudentForward) -> None:
        self.module = student

    def publish(self) -> None:
        """Do nothing: the optimiser changes the student's own weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the student's state."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the student's state."""
        self.module.load_state_dict(state)

    def close(self) -> None:
        """Do nothing."""


class MasterWeights(Trainable):
    """bfloat16 weights for computing, float32 masters for the optimiser.

    An optimiser step is often smaller than half the distance between two bfloat16 numbers, and would round to zero. So the
    optimiser changes the masters, and the weights are the rounded masters. Each backward pass moves its gradients to the
    masters, where they add up in float32. Masters of untrained weights are kept too, so that `close` restores them exactly.
    """

    def __init__(self, student: StudentForward) -> None:
        self.student = student
        self.weights = dict(student.named_parameters())
        self.masters = {
            name: nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            for name, weight in self.weights.items()
        }
        self.module = _MasterModule(student, self.masters)
        for weight in self.weights.values():
            weight.data = weight.data.to(torch.bfloat16)
        self._hooks = [
            weight.register_post_accumulate_grad_hook(_move_gradient_to(self.masters[name]))
            for name, weight in self.weights.items()
            if weight.requires_grad
        ]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters to the weights."""
        for name, weight in self.weights.items():
            weight.copy_(self.masters[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the masters and the student's buffers, by the student's names."""
        return {**self.student.state_dict(), **{name: master.detach() for name, master in self.masters.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the masters and the buffers, and round the masters to the weights."""
        self.student.load_state_dict(state)
        for name, master in self.masters.items():
            master.copy_(state[name])
        self.publish()

    def close(self) -> None:
        """Replace the weights by the masters."""
        for hook in self._hooks:
            hook.remove()
        for name, weight in self.weights.items():
            weight.grad = None
            weight.data = self.masters[name].data


class _MasterModule(nn.Module):
    """Computes as the student does, but its parameters are the masters, under the student's names."""

    def __init__(self, student: StudentForward, masters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.student = student
        self.__dict__["masters"] = masters

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `StudentForward`."""
        return self.student(*args, **kwargs)

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the masters by the student's names."""
        yield from self.__dict__["masters"].items()


def _move_gradient_to(master: nn.Parameter) -> Any:
    """Return a hook that adds a weight's gradient to its master's, in float32, and clears it."""

    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        narrow, weight.grad = weight.grad, None
        if master.grad is None:
            master.grad = narrow.to(master.dtype)
        else:
            master.grad.add_(narrow)

    return move
