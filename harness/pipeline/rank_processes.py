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

from harness import errors
from harness.errors import HarnessError, RunError, StoppedError
from harness.pipeline.end_with_parent import end_with_parent

PATIENCE = timedelta(minutes=30)  # for the slowest process to reach the others, as it generates the longest answers
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
            _join_group(0, count, device, meeting)
            yield
            _wait(others)
        except Exception as error:
            # A process that is left waits for the others, and then complains of them; the first complaint is the cause.
            if (cause := _cause(Path(meeting))) is not None and not isinstance(error, HarnessError):
                raise cause from error
            raise
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            for process in others.processes:
                process.kill()


def _follow(place: int, count: int, device: str, meeting: str, train: Train) -> None:
    """Be process `place` + 1 of a stage."""
    end_with_parent()
    # The first process answers signals, and tells the others.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    rank = place + 1
    folder = Path(meeting) / f"rank{rank}"
    folder.mkdir()
    try:
        _join_group(rank, count, device, meeting)
        train("cpu" if device == "cpu" else f"cuda:{rank}", folder)
    except HarnessError as error:
        text = json.dumps({"kind": type(error).__name__, "sentence": str(error)})
        (Path(meeting) / f"error{rank}.json").write_text(text, encoding="utf-8")
        raise
    except StoppedError:
        pass
    # Its work is done, and its libraries' threads may abort a process that takes its interpreter down (seen with gloo).
    os._exit(0)


def _join_group(rank: int, count: int, device: str, meeting: str) -> None:
    # A machine's other interfaces may lead nowhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(
        backend, init_method=f"file://{meeting}/meeting", rank=rank, world_size=count, timeout=PATIENCE
    )


def _wait(others: Any) -> None:
    """Wait until the other processes have ended; raises `RunError` for one that failed after its last step."""
    while not others.join(timeout=1):
        pass


def _cause(meeting: Path) -> HarnessError | None:
    """Return the error of another process, which may be about to write it."""
    for _ in range(20):
        for file in sorted(meeting.glob("error*.json")):
            found = json.loads(file.read_text(encoding="utf-8"))
            return getattr(errors, found["kind"], RunError)(found["sentence"])
        time.sleep(0.1)
    return None
