"""Worker processes that end with their parent, even when it is killed."""

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
    """Return a pool of processes that end within seconds of this one, a SIGKILL included.

    Each sees its own entry of `gpus`, a value of CUDA_VISIBLE_DEVICES, taken in turn where there are more workers.
    """
    handed: Any = context.SimpleQueue()
    for number in range(workers if gpus else 0):
        handed.put(gpus[number % len(gpus)])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(handed, bool(gpus)))


def _begin(gpus: Any, take: bool) -> None:
    if take:  # before anything in this process asks CUDA what it has
        os.environ[VISIBLE] = gpus.get()
    _begin_worker()


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; the one place that asks."""
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
    """Let no signal end the queues while workers still report to them: a scheduler signals a whole group of processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _begin_worker() -> None:
    """Let a signal end a worker without a traceback where no run waits for it: the sweep says what happened."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    end_with_parent()
