"""The GPUs that a worker's process sees; a separate module, because a spawned worker imports the whole module."""

from __future__ import annotations

import os
import time

from harness.teachers.server_start import VISIBLE


def visible(_: int) -> tuple[int, str | None]:
    """Return this process and its CUDA_VISIBLE_DEVICES; slowly, so that one worker does not take all the calls."""
    time.sleep(0.3)
    return os.getpid(), os.environ.get(VISIBLE)
