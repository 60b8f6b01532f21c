"""Notice that one of the processes that train together ended too early, say why, and end the others' wait for it."""

from __future__ import annotations

import pickle
import re
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

from torch.distributed import distributed_c10d

from harness.errors import RunError

GRACE = 5.0  # seconds in which the first process may end by itself: over gloo it notices a lost process at once
PAUSE = 0.1  # seconds between two looks


class OtherEndedError(RuntimeError):
    """Another process ended too early; `RankWatch.cause` says why."""


class RankWatch:
    """Watches the other processes of a stage in a block, and kills them at its end.

    When one of them fails, the first process may wait for it in vain: NCCL notices nothing. So after a moment the rest are
    killed, which closes gloo's connections, and NCCL's communicators are aborted. `error_files` are the files in which torch
    leaves their tracebacks.
    """

    def __init__(self, processes: Sequence[BaseProcess], error_files: Sequence[str]) -> None:
        self.processes, self.error_files = processes, error_files
        self.ended_waits = False  # whether what the first process then computes may be anything
        self._errors: list[Exception] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="other training processes", daemon=True)

    def __enter__(self) -> RankWatch:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End the processes."""
        self._closed.set()
        self._kill()
        self._thread.join()
        for process in self.processes:
            process.join(GRACE)

    @property
    def cause(self) -> Exception | None:
        """Why a process failed: `RunError` for one that was ended from outside, of which the errors of others are a result."""
        return next((error for error in self._errors if isinstance(error, RunError)), next(iter(self._errors), None))

    def check(self) -> None:
        """Raise `OtherEndedError` where a process failed."""
        if self._errors:
            raise OtherEndedError

    def wait(self) -> None:
        """Wait until all processes have done their work; raises `OtherEndedError` where one failed."""
        while self._thread.is_alive() and not self._errors:
            self._thread.join(timeout=1)  # a signal is answered in between
        self.check()

    def _watch(self) -> None:
        running = {process.sentinel: place for place, process in enumerate(self.processes)}
        until = float("inf")
        while running and time.monotonic() < until:
            for sentinel in connection.wait(running, timeout=PAUSE if self._errors else None):
                error = self._error_of(running.pop(sentinel))  # pyright: ignore[reportArgumentType]
                if self._closed.is_set():
                    return
                if error is not None:
                    self._errors.append(error)
                    until = min(until, time.monotonic() + GRACE)
        if self._errors and not self._closed.wait(max(0, until - time.monotonic())):
            self.ended_waits = True
            self._kill()
            for group in list(distributed_c10d._world.pg_map):  # pyright: ignore[reportPrivateUsage]
                group.abort()

    def _error_of(self, place: int) -> Exception | None:
        """Return why a process ended, None where it did its work."""
        process, file = self.processes[place], Path(self.error_files[place])
        until = time.monotonic() + GRACE
        while (status := process.exitcode) is None and time.monotonic() < until:
            time.sleep(0.01)  # another thread has asked the system for it a moment ago
        if status == 0:
            return None
        name = f"process {place + 2} of {len(self.processes) + 1}"
        try:
            traceback = str(pickle.loads(file.read_bytes()))
        except (OSError, EOFError, pickle.UnpicklingError):
            pass  # there is none, or the disk was full, or the process was killed while it wrote
        else:
            named = [line for line in traceback.splitlines() if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
            error = RuntimeError(f"{name} failed with {named[-1] if named else 'an error'}")
            error.add_note(f"The traceback of {name}:\n{traceback}")
            return error
        if status == -signal.SIGKILL:
            return RunError(
                f"{name} was ended by SIGKILL, most often because memory ran out; free memory, or lower training.micro_batch, "
                "then the same command continues"
            )
        return RunError(f"{name} {_how(status)}; what it printed last says why, then the same command continues")

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()


def _how(status: int | None) -> str:
    """Return in words how a process ended, from its exit status."""
    if status is None:
        return "ended"
    if status > 0:
        return f"ended with exit code {status}"
    names = {each.value: each.name for each in signal.Signals}
    return f"was ended by {names.get(-status, f'signal {-status}')}"
