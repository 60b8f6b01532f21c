"""A run in several processes that torchrun started, on one node or several: the first does the run, the others help to train.

The first process reads and writes the run directory and evaluates. The others wait for a stage, load the same checkpoint from
the folder that all nodes share, train it together with the first, and write only their shards of snapshots. torchrun ends all
processes when one fails; the same command, or torchrun's own restart, continues the run.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from harness.errors import HarnessError, RunError, StoppedError
from harness.pipeline.processes.rank_processes import Train, first_of_group, join_group, leave_group, write_cause
from harness.pipeline.processes.stop_signals import ignore_signals

FOR_EVER = timedelta(days=365)  # the first process may evaluate for hours before it trains the next stage
NO_MORE = b""


class Launch(NamedTuple):
    """This process's place among all that torchrun started: its rank of `size`, the same on its node, and the shared store."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: Store


@cache
def this_launch() -> Launch:
    """Return this process's launch; raises `RunError` where torchrun did not start the process."""
    if not distributed.is_torchelastic_launched():
        raise RunError("this process was not started by torchrun; start the command with torchrun")
    store, rank, size = next(rendezvous("env://"))
    launch = Launch(rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), store)
    # Other libraries read these variables too: accelerate, which lm-eval uses, would wait for processes that do not evaluate.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return launch


@contextmanager
def leading() -> Generator[None]:
    """Do a run in this block as the first process; the other processes end when the block ends."""
    launch = this_launch()
    try:
        yield
    finally:
        _order(launch, NO_MORE)


@contextmanager
def launched_processes(device: str, train: Train) -> Generator[None]:
    """Train a stage in all processes: this one trains in the block, the others call `train`, which is pickled for them.

    `device` is the run's. Raises the error of a process that failed.
    """
    launch = this_launch()
    number = _order(launch, pickle.dumps((device, train)))
    with first_of_group(PrefixStore(f"stage{number}", launch.store), launch.size, _own(device, launch)):
        yield


def follow_first_process() -> None:
    """Train every stage that the first process begins, until the first process ends the run."""
    launch, number = this_launch(), 1
    while (order := _wait_for(launch, number)) != NO_MORE:
        try:
            with ignore_signals():
                _train(launch, number, *pickle.loads(order))
        except StoppedError:
            return
        number += 1


def _train(launch: Launch, number: int, device: str, train: Train) -> None:
    stage = PrefixStore(f"stage{number}", launch.store)
    try:
        with tempfile.TemporaryDirectory(prefix="harness-rank-") as folder:
            join_group(stage, launch.rank, launch.size, own := _own(device, launch))
            train(own, Path(folder))
    except HarnessError as error:
        write_cause(stage, error)
        raise
    finally:
        leave_group()


def _own(device: str, launch: Launch) -> str:
    """Return this process's own device; raises `RunError` where a node has more processes than GPUs."""
    if device == "cpu":
        return device
    if (count := torch.cuda.device_count()) <= launch.local_rank:
        raise RunError(
            f"torchrun started {launch.local_size} processes on this node, but torch sees {count} GPUs; "
            "each process needs one"
        )
    return f"cuda:{launch.local_rank}"


def _order(launch: Launch, order: bytes) -> int:
    number = launch.store.add("orders", 1)
    launch.store.set(f"order{number}", order)  # pyright: ignore[reportArgumentType]
    return number


def _wait_for(launch: Launch, number: int) -> bytes:
    launch.store.wait([f"order{number}"], FOR_EVER)
    return launch.store.get(f"order{number}")
