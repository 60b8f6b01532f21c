"""Processes that this one started."""

from __future__ import annotations

from contextlib import suppress

import psutil


def started_by(process: psutil.Process, word: str) -> list[psutil.Process]:
    """Return the running descendants of a process with this word in their command line."""
    found = list[psutil.Process]()
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile, or nobody has waited for it yet
            if word in child.cmdline():
                found.append(child)
    return found
