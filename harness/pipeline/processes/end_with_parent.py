"""A child process that ends with its parent, even when that is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading

import psutil

from harness.errors import RunError


def end_with_parent() -> None:
    """Kill this process and everything that it started when its parent dies; a child process calls this once.

    Without it, the workers of a pool would wait for work for ever after their parent was killed, because nobody closes their
    queue. Raises `RunError` in a process that multiprocessing did not start.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RunError("end_with_parent was called in a process that multiprocessing did not start")

    def watch() -> None:
        parent.join()
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
