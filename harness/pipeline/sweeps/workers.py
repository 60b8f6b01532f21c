"""Pools of worker processes that end with their parent, even when it is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext
from multiprocessing.managers import SyncManager
from typing import Any

from harness.pipeline.processes.end_with_parent import end_with_parent
from harness.pipeline.processes.stop_signals import SIGNALS

VISIBLE = "CUDA_VISIBLE_DEVICES"


def worker_pool(workers: int, context: SpawnContext, gpus: Sequence[str] = ()) -> ProcessPoolExecutor:
    """Return a pool of processes that end within seconds of this one, even when it gets SIGKILL.

    Each process sees one entry of `gpus`, a value of CUDA_VISIBLE_DEVICES; with more workers than entries, they share in turn.
    """
    handed: Any = context.SimpleQueue()
    for number in range(workers if gpus else 0):
        handed.put(gpus[number % len(gpus)])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(handed, bool(gpus)))


def _begin(gpus: Any, take: bool) -> None:
    if take:  # before anything in this process initialises CUDA
        os.environ[VISIBLE] = gpus.get()
    # A signal ends an idle worker without a traceback; the sweep reports what happened.
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    end_with_parent()


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    if (named := os.environ.get(VISIBLE)) is not None:
        return [part.strip() for part in named.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


def queue_manager(context: SpawnContext) -> SyncManager:
    """Return a started manager of shared queues; its process ends within seconds of this one."""
    manager = SyncManager(ctx=context)
    manager.start(initializer=_begin_manager)
    return manager


def _begin_manager() -> None:
    """Ignore signals, because workers still report to the queues after a scheduler has signalled all processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
