"""Worker processes that end with their parent, even when it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext
from multiprocessing.managers import SyncManager

import psutil

from harness.errors import RunError
from harness.pipeline.stop_signals import SIGNALS


def worker_pool(workers: int, context: SpawnContext) -> ProcessPoolExecutor:
    """Return a pool of processes that end within seconds of this one, a SIGKILL included."""
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)


def queue_manager(context: SpawnContext) -> SyncManager:
    """Return a started manager of shared queues; its process ends within seconds of this one."""
    manager = SyncManager(ctx=context)
    manager.start(initializer=end_with_parent)
    return manager


def _begin_worker() -> None:
    """Let a signal end a worker without a traceback where no run waits for it: the sweep says what happened."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    end_with_parent()


def end_with_parent() -> None:
    """Kill this process and everything it started when its parent dies; called once in a child process.

    A pool's workers wait for work for ever when their parent was killed: nobody closes their queue.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RunError("end_with_parent was called in a process that multiprocessing did not start")

    def watch() -> None:
        parent.join()
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
