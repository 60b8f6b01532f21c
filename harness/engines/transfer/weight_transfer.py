"""Hand weights over to vLLM servers through the network (NCCL), by vLLM's weight transfer, if trainer and servers have GPUs.

One broadcast reaches all replicas: the trainer is rank 0, followed by the workers of the first replica, then of the next. The
handshake of vLLM's trainer engine has four calls, which are sent to all replicas at once here. If `find_obstacle` returns
something that is missing, the servers take weights from a folder instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from harness.engines.child_processes import free_ports
from harness.engines.transfer.weight_sources import CheckpointWeights, TensorWeights, WeightSource
from harness.errors import HarnessError, RunError
from harness.lm.completions import AnswerError
from harness.lm.replicas import Replicas, UnavailableError

BACKEND = "nccl"
OPTION = """--weight-transfer-config '{"backend": "nccl"}'"""
VLLM_TRANSFER = "vllm.distributed.weight_transfer"


def find_obstacle(replicas: Replicas, device: str) -> str | None:
    """Return why a trainer on `device` cannot send weights to these servers; None if it can."""
    if not _sends_from(device):
        return "the trainer has no GPU"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed next to the trainer (pip install 'continual-harness[vllm]')"
    for url in replicas.urls:
        try:
            (worker, *_) = replicas.ask(url, "/collective_rpc", {"method": "describe_transfer"})["results"]
            backend = worker["backend"]
        except (HarnessError, UnavailableError, AnswerError, KeyError, TypeError, ValueError):
            backend = ""
        if backend != BACKEND:
            return f"the server at {url} was not started with {OPTION}"
    return None


class WeightTransfer:
    """Sends weights to all replicas, which first form a group with the trainer; `timeout` is in seconds for one hand-over."""

    def __init__(self, replicas: Replicas, device: str, timeout: float) -> None:
        self.fleet = _Fleet(replicas)
        self.device, self.timeout = device, timeout
        self._engine: Any = None
        self._source: WeightSource | None = None

    def send_checkpoint(self, folder: Path) -> None:
        """Let every replica load a checkpoint's weights; raises `RunError` if one does not, or not in time."""
        self._send(CheckpointWeights(folder, self.device))

    def send_tensors(self, weights: Mapping[str, Tensor]) -> None:
        """Let every replica load tensors by name; raises `RunError` if one does not, or not in time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the thread that sends them does not wait for kernels that are still writing
        self._send(TensorWeights(weights))

    def close(self) -> None:
        """Leave the group."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def metadata(self) -> list[Any]:
        """Return vLLM's description of the tensors; its trainer engine uses this object as its source."""
        description = importlib.import_module(f"{VLLM_TRANSFER}.base").ParamMeta
        assert self._source is not None
        return [description(*each) for each in self._source.describe()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors."""
        assert self._source is not None
        return iter(self._source)

    def _send(self, source: WeightSource) -> None:
        self._source = source
        if self._engine is None:
            self._engine = self._within_timeout(self._form_group)
        self._within_timeout(self._engine.send_weights)
        self._source = None

    def _form_group(self) -> Any:
        sizes = self.fleet.count_workers()
        details: Any = importlib.import_module(f"{VLLM_TRANSFER}.nccl_engine").NCCLTrainerInitInfo
        factory: Any = importlib.import_module(f"{VLLM_TRANSFER}.factory").WeightTransferTrainerFactory
        place = details(
            rank=0, master_address=_address_towards(self.fleet.replicas.urls), master_port=free_ports()[0],
            world_size=1 + sum(sizes), packed=False,
        )  # fmt: skip
        return factory.trainer_init(place, client=self.fleet, source=self)

    def _within_timeout(self, call: Callable[[], Any]) -> Any:
        """Return the result of `call`; it runs in a thread, because a broadcast never ends if a receiver has failed."""
        self.fleet.failure = None
        done: Future[Any] = Future()
        threading.Thread(target=_finish, args=(done, call, self.device), name="weights", daemon=True).start()
        until = time.monotonic() + self.timeout
        while not wait([done], timeout=0.2).done:
            if self.fleet.failure is not None:
                break
            if time.monotonic() > until:
                raise RunError(
                    f"the rollout servers did not take new weights within {self.timeout:g} seconds (vllm_server.timeout); "
                    "check their logs, or set vllm_server.transfer to folder; the same command continues from the last "
                    "snapshot"
                )
        if (failure := self.fleet.failure or done.exception()) is None:
            return done.result()
        raise RunError(
            f"a rollout server did not take new weights ({failure}); check its log and start it again, then the same command "
            "continues from the last snapshot; vllm_server.transfer: folder hands weights over without NCCL"
        ) from failure


class _Fleet:
    """vLLM's `VLLMWeightSyncClient` for all replicas at once; `failure` is the first error, before all have answered."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.sizes: list[int] = []
        self.failure: BaseException | None = None

    def count_workers(self) -> list[int]:
        """Return the number of workers of each replica."""
        self.sizes = [int(self.replicas.get(url, "/get_world_size")["world_size"]) for url in self.replicas.urls]
        return self.sizes

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let all workers join the group; each replica's ranks follow those of the replica before it."""
        offsets = [1 + sum(self.sizes[:number]) for number in range(len(self.sizes))]
        self._ask("/init_weight_transfer_engine", [{"init_info": {**init_info, "rank_offset": at}} for at in offsets])

    def start_weight_update(self) -> None:
        """Tell all replicas that an update begins."""
        self._ask("/start_weight_update", [{}] * len(self.sizes))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let all workers receive the tensors."""
        self._ask("/update_weights", [{"update_info": update_info}] * len(self.sizes))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Tell all replicas that the update is complete."""
        self._ask("/finish_weight_update", [{}] * len(self.sizes))

    def _ask(self, path: str, bodies: list[dict[str, Any]]) -> None:
        def ask(url: str, body: dict[str, Any]) -> None:
            try:
                # Never retried: the other side may already wait for tensors.
                self.replicas.ask(url, path, body)
            except BaseException as error:
                self.failure = self.failure or error
                raise

        with ThreadPoolExecutor(len(bodies)) as pool:
            list(pool.map(ask, self.replicas.urls, bodies))


def _finish(done: Future[Any], call: Callable[[], Any], device: str) -> None:
    try:
        if (index := torch.device(device).index) is not None:
            torch.cuda.set_device(index)  # each thread has its own current device
        done.set_result(call())
    except BaseException as error:
        done.set_exception(error)


def _sends_from(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.is_available()


def _address_towards(urls: tuple[str, ...]) -> str:
    """Return this machine's address for the servers: the one of its connection to the first server on another machine."""
    addresses: list[str] = []
    for parts in map(urlsplit, urls):
        with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=10) as connection:
            addresses.append(str(connection.getsockname()[0]))
    return next((address for address in addresses if not address.startswith("127.")), addresses[0])
