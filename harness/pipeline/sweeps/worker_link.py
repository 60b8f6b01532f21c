"""What a sweep shares with its worker processes: a pipe for the events of each, and whether a further run may begin.

Neither has a lock that the workers share, so a worker that is killed at any moment blocks no other one.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from queue import SimpleQueue
from typing import Any

from harness.rundir.process.progress import Event, Report

POLL_SECONDS = 0.1  # between two looks whether the sweep has ended


@dataclass(frozen=True)
class WorkerLink:
    """The sweep's ends of the workers' pipes, and a number in shared memory that is 1 when no further run may begin."""

    pipes: Sequence[Connection]
    stopped: Any

    def stop(self) -> None:
        """Let no further run begin, not even one that a worker's queue holds already."""
        self.stopped.value = 1


@dataclass(frozen=True)
class WorkerEnd:
    """A worker's end of the link."""

    pipe: Connection
    stopped: Any
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def report(self, event: Event) -> None:
        """Send an event to the sweep."""
        with self.one_at_a_time:
            self.pipe.send(event)

    def may_begin(self) -> bool:
        """Whether a run may begin."""
        return not self.stopped.value


@contextmanager
def linked(workers: int, context: SpawnContext, report: Report) -> Generator[WorkerLink]:
    """Yield a link for `workers` processes, and report in a thread of its own what they send in this block.

    Another thread empties the pipes, so that no worker waits for a slow `report`.
    """
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    link = WorkerLink([writer for _, writer in pipes], context.RawValue("b", 0))
    events: SimpleQueue[Event | None] = SimpleQueue()
    ended = threading.Event()

    def collect() -> None:
        readers = [reader for reader, _ in pipes]
        while (ready := wait(readers, POLL_SECONDS)) or not ended.is_set():
            for reader in [each for each in readers if each in ready]:
                try:
                    events.put(reader.recv())
                except (EOFError, OSError):  # the worker has ended
                    readers.remove(reader)
        events.put(None)

    def forward() -> None:
        for event in iter(events.get, None):
            report(event)

    threads = [threading.Thread(target=work, daemon=True) for work in (collect, forward)]
    for thread in threads:
        thread.start()
    try:
        yield link
    finally:
        for _, writer in pipes:
            writer.close()
        ended.set()
        for thread in threads:
            thread.join()
        for reader, _ in pipes:
            reader.close()
