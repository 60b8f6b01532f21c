"""Pools of worker processes that end with their parent, even when it is killed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext
from typing import Any

from harness.pipeline.processes.end_with_parent import end_with_parent
from harness.pipeline.processes.stop_signals import exit_on_signals
from harness.pipeline.sweeps.worker_link import WorkerEnd, WorkerLink
from harness.teachers.server_start import VISIBLE

_end: list[WorkerEnd] = []


def worker_pool(
    workers: int, context: SpawnContext, gpus: Sequence[str] = (), link: WorkerLink | None = None
) -> ProcessPoolExecutor:
    """Return a pool of processes that end within seconds of this one, even when it gets SIGKILL.

    Each process sees one entry of `gpus`, a value of CUDA_VISIBLE_DEVICES; with more workers than entries, they share in turn.
    Each process has one of the pipes of `link`.
    """
    numbers: Any = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(numbers, gpus, link))


def worker_end() -> WorkerEnd:
    """Return this worker's end of the link to its sweep."""
    return _end[0]


def _begin(numbers: Any, gpus: Sequence[str], link: WorkerLink | None) -> None:
    number: int = numbers.get()
    if gpus:  # before anything in this process initialises CUDA
        os.environ[VISIBLE] = gpus[number % len(gpus)]
    if link is not None:
        _end.append(WorkerEnd(link.pipes[number], link.stopped))
    exit_on_signals()
    end_with_parent()
