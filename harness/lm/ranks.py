"""The processes that train one stage together: which one this is, and what they tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size` processes; objects go between them over the CPU."""

    rank: int = 0
    size: int = 1

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in the order of ranks; all processes must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """Return the first process's value; all processes must call it."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, keys: Sequence[Any]) -> list[int]:
        """Return the places of this process's part of some keys; equal keys are one process's."""
        turn = {key: place % self.size for place, key in enumerate(dict.fromkeys(keys))}
        return [place for place, key in enumerate(keys) if turn[key] == self.rank]


ALONE = Ranks()


def current_ranks() -> Ranks:
    """Return the processes of torch's default group; one process where none was started."""
    if not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as one plain tensor; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def take(tensor: Tensor, state: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded; all processes must call it."""
    if isinstance(tensor, DTensor):
        state = distribute_tensor(state.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(state)


def local_part(parameter: nn.Parameter, state: Tensor) -> Tensor:
    """Return a state of the parameter's shape as it is split; another state, such as a count, stays whole."""
    if not isinstance(parameter, DTensor) or state.shape != parameter.shape or isinstance(state, DTensor):
        return state
    return distribute_tensor(state.to(parameter.device), parameter.device_mesh, parameter.placements)
