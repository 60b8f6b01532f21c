"""Processes that this one started, or starts in milliseconds: forked from a server that has imported and computed nothing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from torch.multiprocessing.spawn import start_processes  # pyright: ignore[reportUnknownVariableType]

# A process has one such server, which the first of its tests that needs it starts.
PRELOADED = [
    "pytest",
    "harness.pipeline.run",
    "adapters",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
]


def start_together(work: Callable[..., None], size: int, *arguments: Any) -> None:
    """Let `size` processes do `work(rank, *arguments)`, and wait for all."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(work, arguments, nprocs=size, start_method="forkserver")


def started_by(process: psutil.Process, word: str) -> list[psutil.Process]:
    """Return the running descendants of a process with this word in their command line."""
    found = list[psutil.Process]()
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile, or nobody has waited for it yet
            if word in child.cmdline():
                found.append(child)
    return found
