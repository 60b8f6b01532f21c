"""Worker processes that end with their parent, even when it is killed."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext
from multiprocessing.managers import SyncManager

from harness.pipeline.end_with_parent import end_with_parent
from harness.pipeline.stop_signals import SIGNALS


def worker_pool(workers: int, context: SpawnContext) -> ProcessPoolExecutor:
    """Return a pool of processes that end within seconds of this one, a SIGKILL included."""
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)


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
