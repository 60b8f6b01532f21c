"""SIGTERM and SIGINT: a run ends after its present training step, with a snapshot, and the same command continues it.

Outside a training that takes snapshots, and at a second signal, a run ends at once: all that is finished is on disk. Signals
within one second count as one, because a terminal and a scheduler signal a sweep and its workers alike, and the sweep forwards
its own signal to the workers.

A library may catch the exception that ends a run, as every bare `except:` does. So a signal is noted too, and ends the run at
its next training step or stage.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from harness.errors import RunError, StoppedError

if TYPE_CHECKING:
    # Workers import this module first; snapshots import torch, which takes seconds.
    from harness.rundir.training.snapshots import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_REQUEST = 1.0  # seconds in which all signals count as one

_outside_runs: list[str] = []  # the signals that this process got between runs


@contextmanager
def stop_on_signals(request: StopRequest) -> Generator[None]:
    """Answer both signals in this block: by `request` where a training looks for it at every step, else by ending at once.

    Raises `RunError` at the end of the block, and at its start after a signal that did not end this process between runs.
    Inside, the signal raises `StoppedError`, which no `except Exception` catches.
    """
    if _outside_runs:
        raise RunError(f"stopped by {_outside_runs[0]}; the same command continues")

    def answer(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        first = not request.signal or now - request.since < ONE_REQUEST
        request.signal, request.since = request.signal or name, request.since or now
        if request.waited_for and first:
            return
        cost = "" if request.waited_for else request.cost
        raise StoppedError(f"stopped by {name}; {cost}the same command continues")

    with _handlers(answer):
        try:
            yield
        except StoppedError as error:
            raise RunError(str(error)) from error


def exit_on_signals() -> None:
    """Let both signals end this process, a worker of a sweep, wherever no `stop_on_signals` answers them."""

    def answer(number: int, _: FrameType | None) -> None:
        _outside_runs.append(signal.Signals(number).name)
        sys.exit(0)  # without a traceback; the sweep reports what happened

    for number in SIGNALS:
        signal.signal(number, answer)


@contextmanager
def forward_signals(request: StopRequest) -> Generator[None]:
    """Forward both signals to the pool's workers in this block, and note the first one in `request`.

    A worker ends its run as in `stop_on_signals`.
    """

    def answer(number: int, _: FrameType | None) -> None:
        request.signal = request.signal or signal.Signals(number).name
        for worker in multiprocessing.active_children():
            if worker.pid is not None:
                os.kill(worker.pid, number)

    with _handlers(answer):
        yield


@contextmanager
def note_signals(request: StopRequest) -> Generator[None]:
    """Note the first signal in `request` in this block; the second one raises `StoppedError` at once."""

    def answer(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if request.signal:
            raise StoppedError(f"stopped by {name}; the same command continues")
        request.signal = name

    with _handlers(answer):
        yield


def ignore_signals() -> AbstractContextManager[None]:
    """Ignore both signals in this block: another process answers them and stops this one."""
    return _handlers(signal.SIG_IGN)


@contextmanager
def _handlers(answer: signal.Handlers | Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Make `answer` the handler of both signals in this block; in other threads than the main one do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, answer) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
