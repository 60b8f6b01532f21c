"""Open a student's weights for training: its own, master weights or shards, by precision and number of processes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from harness.config.training import Precision
from harness.errors import NotFiniteError
from harness.lm.logprobs import StudentForward
from harness.lm.ranks import current_ranks
from harness.lm.trained.weights import MasterWeights, OwnWeights, Trainable


@contextmanager
def trainable(student: StudentForward, precision: Precision) -> Generator[Trainable]:
    """Open a student's weights for training; afterwards the student has the new weights in its original precision."""
    opened = _open(student, precision)
    try:
        yield opened
    except BaseException as error:
        # Closing needs all processes. An error of one leaves the others waiting elsewhere; all see a loss that is not finite.
        if current_ranks().size == 1 or isinstance(error, NotFiniteError):
            opened.close()
        raise
    opened.close()


@contextmanager
def as_computed(model: nn.Module, precision: Precision) -> Generator[None]:
    """Give a model in this block the weights with which its training computes; afterwards it has its own again."""
    own = [(weight, weight.data) for weight in model.parameters()] if precision == "bfloat16_master" else []
    for weight, data in own:
        weight.data = data.to(torch.bfloat16)
    try:
        yield
    finally:
        for weight, data in own:
            weight.data = data


def _open(student: StudentForward, precision: Precision) -> Trainable:
    if (ranks := current_ranks()).size > 1:
        from harness.lm.trained.sharded import ShardedWeights  # imports all of torch's FSDP

        return ShardedWeights(student, precision, ranks)
    return MasterWeights(student) if precision == "bfloat16_master" else OwnWeights(student)
