"""The processes that train a stage together: this process is the first and starts the others for the time of the stage.

They form one process group of torch, over NCCL on GPUs and gloo on a CPU. The first process reads and writes the run
directory; the others load the same checkpoint, train, and write only their shards of snapshots. When one fails, all end, and
the first process raises its error.
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

import psutil
import torch
from torch import distributed, multiprocessing
from torch.distributed import FileStore, Store  # pyright: ignore[reportPrivateImportUsage]

from harness import errors
from harness.errors import HarnessError, RunError, StoppedError
from harness.pipeline.processes.end_with_parent import end_with_parent
from harness.pipeline.processes.rank_watch import PAUSE, OtherEndedError, RankWatch
from harness.pipeline.processes.stop_signals import SIGNALS

PATIENCE = timedelta(minutes=30)  # until the slowest process reaches the others; `Ranks.from_first` waits longer
# Seconds to wait for why another process failed.
AFTER_A_LOSS, AFTER_AN_ERROR = 10.0, 2.0
CAUSE = "cause"
Train = Callable[[str, Path], object]  # trains on a device; the folder is for files of the process


@contextmanager
def several_processes(count: int, device: str, train: Train) -> Generator[None]:
    """Train a stage in `count` processes: this one trains in the block, the others call `train`, which is pickled for them.

    Raises `RunError` for more processes than GPUs and for a process that was killed, and the error of a process that failed.
    """
    if device != "cpu" and torch.cuda.device_count() < count:
        raise RunError(
            f"parallel.processes is {count}, but torch sees {torch.cuda.device_count()} GPUs; each process needs one"
        )
    with tempfile.TemporaryDirectory(prefix="harness-ranks-") as meeting:
        others: Any = multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
            _follow, (count, device, meeting, train), nprocs=count - 1, join=False, daemon=True, start_method="spawn"
        )
        with (
            RankWatch(others.processes, others.error_files) as watch,
            first_of_group(_store(meeting, count), count, device if device == "cpu" else "cuda:0", watch),
        ):
            yield
            watch.wait()


def _follow(place: int, count: int, device: str, meeting: str, train: Train) -> None:
    """Train as process `place` + 1 of a stage."""
    end_with_parent()
    # The first process answers signals and stops the others.
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
    # The work is done. While the interpreter shuts down, gloo's threads (see `leave_group`) may abort the process.
    os._exit(0)


@contextmanager
def first_of_group(store: Store, count: int, device: str, watch: RankWatch | None = None) -> Generator[None]:
    """Be the first of `count` processes in this block; raises the error of another process that failed.

    `watch` watches the others, where this process started them.
    """
    try:
        if watch is not None:
            _wait_for_others(store, count, watch)
        join_group(store, 0, count, device)
        yield
    except Exception as error:
        # When one process fails, the others fail too, because they lose it.
        forced, own = watch is not None and watch.ended_waits, isinstance(error, HarnessError)
        if own and not forced:
            raise
        lost = forced or _is_loss(error)
        cause = _cause(store, watch, lost or isinstance(error, distributed.DistError))
        if cause is None and lost:
            cause = RunError(
                f"another of the {count} processes ended without an error of its own; what it printed last says why, then "
                "the same command continues"
            )
        if cause is None or (own and type(cause) is type(error)):
            raise
        raise cause from error
    finally:
        leave_group()


def _wait_for_others(store: Store, count: int, watch: RankWatch) -> None:
    """Wait until all processes are about to join: while it joins, the first one would wait for a dead process in vain.

    Raises `OtherEndedError` where one ended, and `RunError` where one takes too long.
    """
    names, until = [_about_to_join(rank) for rank in range(1, count)], time.monotonic() + PATIENCE.total_seconds()
    while not store.check(names):
        watch.check()
        if time.monotonic() > until:
            raise RunError(
                f"not all of the {count} processes started within {PATIENCE.total_seconds() / 60:g} minutes; look at what "
                "else this machine does, then the same command continues"
            )
        time.sleep(PAUSE)


def _is_loss(error: Exception) -> bool:
    """Return whether an error says that another process is gone: it is ours, or gloo's or NCCL's words.

    NCCL and the store have errors of their own too, such as a wrong network interface.
    """
    said = any(words in str(error) for words in ("by peer", "Broken pipe", "remote process"))
    return isinstance(error, OtherEndedError) or (isinstance(error, RuntimeError) and said)


def _cause(store: Store, watch: RankWatch | None, lost: bool) -> Exception | None:
    """Return why another process failed, None where it does not say; waits for a process that is about to end.

    `lost` says that this process may miss another. If it does not, an unforeseen error of another is no cause of its own one.
    """
    until = time.monotonic() + (AFTER_A_LOSS if lost else AFTER_AN_ERROR)
    while True:
        if (written := read_cause(store)) is not None:
            return written
        seen = None if watch is None else watch.cause
        if isinstance(seen, RunError) or (lost and seen is not None and not _is_loss(seen)):
            return seen
        if time.monotonic() > until:
            return seen if lost else None
        time.sleep(PAUSE)


def leave_group() -> None:
    """Leave the process group, where this process is in one.

    Gloo's threads free a collective's tensors a moment after it ends, for which they need Python's lock. The group holds that
    lock while it waits for its threads to end. Without the pause, about one process in a hundred would wait for ever.
    """
    if distributed.is_initialized():
        time.sleep(PAUSE)
        distributed.destroy_process_group()


def join_group(store: Store, rank: int, count: int, device: str) -> None:
    """Join `count` processes that meet at a store, over gloo and, for GPUs, NCCL; `device` is this process's own."""
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store.set(_about_to_join(rank), "")
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)


def write_cause(store: Store, error: HarnessError) -> None:
    """Write to the store why this process fails, for the first process to read."""
    store.set(CAUSE, json.dumps({"kind": type(error).__name__, "sentence": str(error)}))


def read_cause(store: Store) -> HarnessError | None:
    """Return the error that another process wrote, or None."""
    if not store.check([CAUSE]):
        return None
    found = json.loads(store.get(CAUSE))
    return getattr(errors, found["kind"], RunError)(found["sentence"])


def loopback() -> str:
    """Return the name of this machine's interface to itself: `lo` on Linux, `lo0` on macOS."""
    named = (
        name for name, found in psutil.net_if_addrs().items() if any(each.address == "127.0.0.1" for each in found)
    )
    return next(named, "lo")


def _about_to_join(rank: int) -> str:
    """Return the key that a process sets in the store before it joins."""
    return f"joins{rank}"


def _store(meeting: str, count: int) -> Store:
    # All processes are on this machine, and its other network interfaces may not work.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
    return FileStore(f"{meeting}/meeting", count)
