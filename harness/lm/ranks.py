"""The processes that train one stage together: this process's rank, objects exchanged between them, and split tensors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")
# For the first process to draw all answers, score a learning curve, or copy a snapshot.
ALONE_AT_WORK = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `size` processes, from 0; objects are exchanged over the CPU."""

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
        """Return the first process's value; all processes must call it, and wait for what the first does alone before."""
        if self.size == 1:
            return value
        values = [value]
        with _waiting_for_first():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, keys: Sequence[Any]) -> list[int]:
        """Return the indices of this process's part of `keys`; equal keys go to the same process."""
        owner = {key: number % self.size for number, key in enumerate(dict.fromkeys(keys))}
        return [index for index, key in enumerate(keys) if owner[key] == self.rank]


ALONE = Ranks()


def current_ranks() -> Ranks:
    """Return the processes of torch's default group; a single process if there is no group."""
    if not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def _waiting_for_first() -> Generator[None]:
    """Let exchanges over the CPU in this block take as long as the first process may work alone.

    Gloo notices at once when a process dies: its connections close.
    """
    group: Any = distributed.group.WORLD
    backend = group._get_backend(torch.device("cpu"))
    before = backend.options._timeout
    backend._set_default_timeout(ALONE_AT_WORK)
    try:
        yield
    finally:
        backend._set_default_timeout(before)


# DTensor is imported only if there are several processes: the import takes a second, and one process never splits tensors.


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be split over processes; all processes must call it."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def is_split(tensor: Tensor) -> bool:
    """Return whether a tensor is split over the processes."""
    if current_ranks().size == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def take(tensor: Tensor, state: Tensor) -> None:
    """Copy a whole tensor `state` into one that may be split; all processes must call it."""
    tensor.copy_(_split_like(tensor, state) if is_split(tensor) else state)


def local_part(parameter: nn.Parameter, state: Tensor) -> Tensor:
    """Return an optimiser state split like its parameter; a state of another shape, such as a step count, stays whole."""
    if not is_split(parameter) or is_split(state):
        return state
    # A copy, because `state` may be a view of a file.
    return _split_like(parameter, state) if state.shape == parameter.shape else state.clone()


def _split_like(tensor: Any, state: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(state.to(tensor.device), tensor.device_mesh, tensor.placements)
