"""What an optimiser steps, and how it stands to the student: the student itself, master weights, or shards.

A stage trains through a `Trainable`. Its `module` is called for a forward pass, and the optimiser steps the module's
parameters. The student's own model generates, inside `whole`, with the weights of the last `publish`. `close` gives the
student back with all that was learned, in the precision in which it came.
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
    """The weights that a stage trains; see the module's page."""

    module: nn.Module

    @contextmanager
    def whole(self) -> Generator[None]:
        """Have the published weights in the student's own model in this block."""
        yield

    @abstractmethod
    def publish(self) -> None:
        """Give the student's own model the weights of the moment, after an update."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the weights for a snapshot, by the names of the student."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the weights of a snapshot, and publish them."""

    @abstractmethod
    def close(self) -> None:
        """Give the student its weights back, in the precision in which it came."""


class OwnWeights(Trainable):
    """The student's own parameters, in their own precision."""

    def __init__(self, student: StudentForward) -> None:
        self.module = student

    def publish(self) -> None:
        """Do nothing: the student's weights are those that the optimiser stepped."""

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

    A step of an optimiser is often smaller than half the distance between two bfloat16 numbers, and would round to nothing.
    So it changes the masters, and the weights are the masters rounded. Gradients leave the weights after each backward pass
    and add up in float32. Weights that are not trained are kept as well, so that `close` restores them to the bit.
    """

    def __init__(self, student: StudentForward) -> None:
        self.student = student
        self.weights = dict(student.named_parameters())
        self.masters = {
            name: nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            for name, weight in self.weights.items()
        }
        self.module = _Mastered(student, self.masters)
        for weight in self.weights.values():
            weight.data = weight.data.to(torch.bfloat16)
        self._hooks = [
            weight.register_post_accumulate_grad_hook(_moved_to(self.masters[name]))
            for name, weight in self.weights.items()
            if weight.requires_grad
        ]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters to the weights."""
        for name, weight in self.weights.items():
            weight.copy_(self.masters[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the masters, and the student's buffers."""
        return {**self.student.state_dict(), **{name: master.detach() for name, master in self.masters.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the masters and the buffers, and round the masters to the weights."""
        self.student.load_state_dict(state)
        for name, master in self.masters.items():
            master.copy_(state[name])
        self.publish()

    def close(self) -> None:
        """Put the masters in the weights' place."""
        for hook in self._hooks:
            hook.remove()
        for name, weight in self.weights.items():
            weight.grad = None
            weight.data = self.masters[name].data


class _Mastered(nn.Module):
    """Computes as the student does, and has the masters as its parameters, under the student's names."""

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


def _moved_to(master: nn.Parameter) -> Any:
    """Return a hook that adds a weight's gradient to its master's, in float32, and clears it."""

    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        narrow, weight.grad = weight.grad, None
        if master.grad is None:
            master.grad = narrow.to(master.dtype)
        else:
            master.grad.add_(narrow)

    return move
