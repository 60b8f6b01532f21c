"""SIGTERM and SIGINT: a run ends after the training step that it is in, with a snapshot, and the same command continues it.

Outside a training that takes snapshots, and at the second signal, it ends at once: all that is finished is on disk.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from harness.errors import RunError, StoppedError
from harness.rundir.snapshots import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals(request: StopRequest) -> Generator[None]:
    """Answer both signals in this block by `request` where a training can wait for them, else at once.

    Raises `RunError` when the block has ended: `StoppedError` passes what catches every `Exception` on its way there.
    """

    def answer(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if request.waited_for and not request.signal:
            request.signal = name
            return
        cost = "" if request.waited_for else request.cost
        raise StoppedError(f"stopped by {name}; {cost}the same command continues")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, answer) for number in SIGNALS}
    try:
        yield
    except StoppedError as error:
        raise RunError(str(error)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
