"""The processes that train a stage together: this one is the first, and starts the others for as long as the stage trains.

They form torch's process group over NCCL on GPUs and gloo on a CPU. The first process reads and writes the run directory; the
others load the same checkpoint, train, and write nothing. One that fails ends them all, with its own sentence.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing
from torch.distributed import FileStore, Store  # pyright: ignore[reportPrivateImportUsage]

from harness import errors
from harness.errors import HarnessError, RunError, StoppedError
from harness.pipeline.processes.end_with_parent import end_with_parent
from harness.pipeline.processes.stop_signals import SIGNALS

PATIENCE = timedelta(minutes=30)  # for the slowest process to reach the others, as it generates the longest answers
CAUSE = "cause"
PAUSE = 0.1  # seconds
Train = Callable[[str, Path], object]  # trains on a device, with a folder for what the process leaves behind


@contextmanager
def several_processes(count: int, device: str, train: Train) -> Generator[None]:
    """Train a stage in `count` processes: in this one, in the block, and in others by `train`, which is sent to them.

    Raises `RunError` for more processes than GPUs, and the sentence of a process that failed.
    """
    if device != "cpu" and torch.cuda.device_count() < count:
        raise RunError(
            f"parallel.processes is {count}, but torch sees {torch.cuda.device_count()} GPUs; each process needs one"
        )
    with tempfile.TemporaryDirectory(prefix="harness-ranks-") as meeting:
        others: Any = multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
            _follow, (count, device, meeting, train), nprocs=count - 1, join=False, daemon=True, start_method="spawn"
        )
        try:
            with first_of_group(_store(meeting, count), count, device if device == "cpu" else "cuda:0"):
                yield
                _wait(others)
        finally:
            for process in others.processes:
                process.kill()


def _follow(place: int, count: int, device: str, meeting: str, train: Train) -> None:
    """Be process `place` + 1 of a stage."""
    end_with_parent()
    # The first process answers signals, and tells the others.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    rank, store = place + 1, _store(meeting, count)
    own = "cpu" if device == "cpu" else f"cuda:{rank}"
    folder = Path(meeting) / f"rank{rank}"
    folder.mkdir()
    try:
        join_group(store, rank, count, own)
        train(own, folder)
    except HarnessError as error:
        write_cause(store, error)
        raise
    except StoppedError:
        pass
    # Its work is done. Gloo's threads, see `leave_group`, may abort a process that takes its interpreter down.
    os._exit(0)


@contextmanager
def first_of_group(store: Store, count: int, device: str) -> Generator[None]:
    """Be the first of `count` processes in this block; raises the sentence of another one that failed."""
    try:
        join_group(store, 0, count, device)
        yield
    except HarnessError:
        raise
    except Exception as error:
        # A process that is left waits for the others, and then complains of them; the first complaint is the cause.
        if (cause := read_cause(store)) is not None:
            raise cause from error
        raise
    finally:
        leave_group()


def leave_group() -> None:
    """Leave the group, where this process is in one.

    Gloo's threads let go of a collective's tensors a moment after it ends, and need Python's lock for that; the group waits
    for its threads when it goes, and holds the lock. Without the pause one process in some hundred waits for ever.
    """
    if distributed.is_initialized():
        time.sleep(PAUSE)
        distributed.destroy_process_group()


def join_group(store: Store, rank: int, count: int, device: str) -> None:
    """Become one of `count` processes that meet at a store, over gloo and, for GPUs, NCCL; `device` is this process's own."""
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)


def write_cause(store: Store, error: HarnessError) -> None:
    """Tell the first process why this one fails."""
    store.set(CAUSE, json.dumps({"kind": type(error).__name__, "sentence": str(error)}))


def read_cause(store: Store) -> HarnessError | None:
    """Return the error of another process, which may be about to write it."""
    for _ in range(20):
        if store.check([CAUSE]):
            found = json.loads(store.get(CAUSE))
            return getattr(errors, found["kind"], RunError)(found["sentence"])
        time.sleep(0.1)
    return None


def _store(meeting: str, count: int) -> Store:
    # A machine's other interfaces may lead nowhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return FileStore(f"{meeting}/meeting", count)


def _wait(others: Any) -> None:
    """Wait until the other processes have ended; raises `RunError` for one that failed after its last step."""
    while not others.join(timeout=1):
        pass
