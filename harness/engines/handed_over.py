"""Folders with weights on their way to an engine: named by the process that wrote them, and removed once it was killed."""

from __future__ import annotations

import glob
import os
import shutil
import socket
from pathlib import Path

import psutil

PREFIX = "harness-weights-"


def own_prefix() -> str:
    """Return how the names of this process's folders begin."""
    return f"{host_prefix()}{os.getpid()}-"


def host_prefix() -> str:
    """Return how the names begin on this host, in this process-id namespace.

    Machines may share a folder, and containers one machine's memory, but each numbers its processes separately.
    """
    space = Path("/proc/self/ns/pid")
    return f"{PREFIX}{socket.gethostname()}-{space.stat().st_ino if space.exists() else 0}-"


def remove_abandoned(place: Path) -> None:
    """Remove the folders in `place` of this host's processes that are gone."""
    for folder in place.glob(f"{glob.escape(host_prefix())}*"):
        owner = folder.name.removeprefix(host_prefix()).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
