"""A process that holds the lease of a run in a store: `python -m tests.support.lease_holder URL MACHINE`, driven line by line.

It says `ready`, takes the lease at the first line and says `held` or the error, and says at each further line if it has it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from harness.errors import HarnessError
from harness.rundir.shared.lease import Lease

VALID, RENEWAL = 1.5, 0.2


def lease_on(url: str, machine: str = "here") -> Lease:
    """Return a lease that is renewed and ends within seconds."""
    system, root = fsspec.core.url_to_fs(url)
    return Lease(system, root, url, VALID, RENEWAL, machine)


class Holder:
    """The process, as its parent sees it."""

    def __init__(self, url: str, machine: str) -> None:
        command = [sys.executable, "-m", __name__, url, machine]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert self.line() == "ready"

    def line(self) -> str:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        """Let it take the lease, or look whether it still has it."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextmanager
def holders() -> Generator[Any]:
    """Yield what starts such processes; they end with the block."""
    started: list[Holder] = []

    def start(url: str, machine: str) -> Holder:
        started.append(Holder(url, machine))
        return started[-1]

    try:
        yield start
    finally:
        for holder in started:
            holder.process.kill()
            with suppress(OSError):
                holder.process.communicate()


def _hold(url: str, machine: str) -> None:
    lease = lease_on(url, machine)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with lease.held(lambda _: None):
            print("held", flush=True)
            while sys.stdin.readline():
                lease.refuse_lost()
                print("still held", flush=True)
    except HarnessError as error:
        print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    _hold(*sys.argv[1:])
