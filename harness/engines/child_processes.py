"""Processes that the harness starts: ports for them to listen on, and their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress


def free_ports(host: str = "", count: int = 1) -> tuple[int, ...]:
    """Return distinct ports on which nothing listens; raises `OSError` for a host where this machine cannot listen."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return tuple(each.getsockname()[1] for each in sockets)
    finally:
        for each in sockets:
            each.close()


def end_group(process: subprocess.Popen[bytes]) -> int:
    """Kill a process's group and return the process's status: what it started may outlive it and keep memory."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
