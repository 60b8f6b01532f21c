"""A student that several processes train together: each has a shard of every weight, gradient and optimiser moment (FSDP2).

A copy of the student is sharded and trained. The student's own model keeps its tensors' shapes but not their memory. It is
filled from the shards inside `whole`, where it generates and its weights are read, and by `close` when the stage ends.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from harness.config.training import Precision
from harness.lm.logprobs import LogProbs, StudentForward
from harness.lm.ranks import Ranks, take, whole
from harness.lm.trained.recompute import layers_of
from harness.lm.trained.weights import Trainable


class ShardedWeights(Trainable):
    """Weights sharded over processes; with `bfloat16_master` the shards are float32 and the computation is bfloat16."""

    def __init__(self, student: StudentForward, precision: Precision, ranks: Ranks) -> None:
        self.student, narrow = student, precision == "bfloat16_master"
        self.own = dict(student.named_parameters())
        device = next(iter(self.own.values())).device.type
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if narrow else MixedPrecisionPolicy()
        mesh = init_device_mesh(device, (ranks.size,))
        # The copy shares the student's tensors until each is split, so no process holds two whole models.
        shared = {id(own): nn.Parameter(own.data, own.requires_grad) for own in self.own.values()}
        self.module = copy.deepcopy(student, shared)
        for layer in layers_of(self.module):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(self.module, mesh=mesh, mp_policy=policy)
        self.module.register_forward_hook(_hand_out_views)
        for part in self._parts():
            # Each process computes its share of one loss, so gradients are summed, not averaged.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        self.shapes = {name: (own.dtype, own.data.shape) for name, own in self.own.items()}
        for own in self.own.values():
            own.data = torch.empty_like(own.data, dtype=torch.bfloat16 if narrow else own.dtype)
            own.untyped_storage().resize_(0)

    @contextmanager
    def whole(self) -> Generator[None]:
        """Fill the student's own model in this block; all processes must enter it."""
        self._fill()
        try:
            yield
        finally:
            for own in self.own.values():
                own.untyped_storage().resize_(0)

    def publish(self) -> None:
        """Do nothing: `whole` fills the student when it is read."""

    def state_dict(self) -> dict[str, Any]:
        """Return this process's shards."""
        self._reshard()
        return self.module.state_dict()

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process's shards from whole weights."""
        self._reshard()
        # Tied weights have several names in a state; the parameter's own name has full precision.
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if name in state:
                take(tensor, state[name])

    @torch.no_grad()
    def close(self) -> None:
        """Give the student its whole weights, in their original precision."""
        self._reshard()
        for name, shards in self.module.named_parameters():
            dtype, _ = self.shapes[name]
            self.own[name].data = whole(shards).detach().to(dtype)

    @torch.no_grad()
    def _fill(self) -> None:
        self._reshard()
        for name, shards in self.module.named_parameters():
            own = self.own[name]
            own.untyped_storage().resize_(own.numel() * own.element_size())
            own.copy_(whole(shards))

    def _reshard(self) -> None:
        """Free the whole weights that FSDP's root keeps after a forward pass without a backward pass."""
        for part in self._parts():
            part.reshard()

    def _parts(self) -> list[FSDPModule]:
        return [part for part in self.module.modules() if isinstance(part, FSDPModule)]


def _hand_out_views(_module: Any, _inputs: Any, found: LogProbs) -> LogProbs:
    """Return views of a forward pass's results, so that FSDP's hooks wait for the real backward pass.

    The step log differentiates losses with respect to these tensors. On FSDP's own outputs, its hooks would treat that as a
    backward pass, and a process with a filler, which logs nothing, would get out of step with the others.
    """
    tensors = {name: value for name, value in vars(found).items() if isinstance(value, Tensor) and value.requires_grad}
    return replace(found, **{name: value.view_as(value) for name, value in tensors.items()})
