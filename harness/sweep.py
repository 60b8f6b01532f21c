"""Many runs: side by side in a pool of processes on this machine, one after another where there is one worker."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from queue import Queue
from typing import Any

from harness.config import Suite
from harness.pipeline import RunSpec, run
from harness.progress import Event, Report


def plan(suite: Suite, entries: Sequence[str], seeds: Sequence[int], order: str, out: Path) -> list[RunSpec]:
    """Return the runs of a sweep, seed by seed, so that the first seed's comparison is complete first."""
    return [RunSpec(suite, entry, seed, order, out) for seed, entry in product(seeds, entries)]


def default_workers(runs: int) -> int:
    """Return how many runs go side by side: one per processor this process may use, at most one per run."""
    return max(1, min(runs, len(os.sched_getaffinity(0))))


def sweep(
    specs: Sequence[RunSpec], workers: int, report: Report, on_finished: Callable[[RunSpec], object] = lambda _: None
) -> None:
    """Do all runs; the first error stops the runs that have not begun and is raised when the others have ended."""
    if workers == 1:
        for spec in specs:
            run(spec, report)
            on_finished(spec)
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        events = manager.Queue()
        listener = threading.Thread(target=_forward, args=(events, report), daemon=True)
        listener.start()
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            _drain({pool.submit(_run_in_worker, spec, events): spec for spec in specs}, on_finished)
        events.put(None)
        listener.join()


def _run_in_worker(spec: RunSpec, events: Any) -> None:
    run(spec, events.put)


def _drain(pending: dict[Future[None], RunSpec], on_finished: Callable[[RunSpec], object]) -> None:
    for future in as_completed(pending):
        error = future.exception()
        if error is not None:
            for other in pending:
                other.cancel()
            raise error
        on_finished(pending[future])


def _forward(events: Queue[Event | None], report: Report) -> None:
    while (event := events.get()) is not None:
        report(event)
