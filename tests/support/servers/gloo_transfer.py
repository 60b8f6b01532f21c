"""vLLM's NCCL weight transfer on machines without GPUs: its engines of both sides, with gloo in place of NCCL.

Servers take it by `--worker-extension-cls tests.support.servers.gloo_transfer.WeightsByGloo`. What moves the bytes is
replaced; routes, handshake, ranks, order of calls and loading are vLLM's own.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore  # pyright: ignore

from harness.engines.vllm_worker import WeightsInPlace

SECONDS = timedelta(seconds=300)


class GlooGroup:
    """What vLLM's engines ask of a communicator."""

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        self.store = TCPStore(host, port, world_size, is_master=rank == 0, timeout=SECONDS)
        self.group: Any = ProcessGroupGloo(PrefixStore("weights", self.store), rank, world_size, SECONDS)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self.group.broadcast([tensor], options).wait()


class WeightsByGloo(WeightsInPlace):
    """The servers' worker extension of the harness, for servers whose NCCL engine uses gloo."""


def _replace_engine_of_servers() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory  # pyright: ignore
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine  # pyright: ignore

    class GlooEngine(NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info: Any) -> None:
            rank = (
                self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank
            )
            self.model_update_group = GlooGroup(
                init_info.master_address, init_info.master_port, rank + init_info.rank_offset, init_info.world_size
            )

        def update_weights(self, update_info: dict[str, Any]) -> None:
            found = self.parse_update_info(update_info)  # without a GPU there is nothing to wait for
            for name, dtype, shape in zip(found.names, found.dtype_names, found.shapes, strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
                self.model_update_group.broadcast(weight, src=0)
                self.model.load_weights([(name, weight)])

    WeightTransferEngineFactory._registry["nccl"] = lambda: GlooEngine


def replace_group_of_trainer(patch: Any) -> None:
    """Let vLLM's trainer engine meet the servers by gloo; `patch` is pytest's monkeypatch."""
    from vllm.distributed.weight_transfer import nccl_engine  # pyright: ignore

    patch.setattr(
        nccl_engine,
        "open_trainer_endpoint",
        lambda place: GlooGroup(place.master_address, place.master_port, 0, place.world_size),
    )
    patch.setattr(torch.cuda, "current_stream", lambda: None)


with suppress(ImportError):  # the tests that need vLLM skip themselves
    _replace_engine_of_servers()
