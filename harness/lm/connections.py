"""The sockets of an HTTP client: shutting them down ends its requests in flight, which closing the client does not do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet

# Events of the documented request extension `trace`, at which httpcore hands out a network stream.
OPENED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})


class Connections:
    """The open sockets of a client whose requests have `note` as their extension `trace`."""

    def __init__(self) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()
        self._ended = False

    def note(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the socket of a connection that was opened; after `end` shut it down at once."""
        if event not in OPENED:
            return
        opened: socket.socket = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._sockets.add(opened)
            ended = self._ended
        if ended:
            _shut_down(opened)

    def end(self) -> None:
        """Wake all threads that wait for an answer; their requests end with an error."""
        with self._lock:
            self._ended = True
            sockets = list(self._sockets)
        for each in sockets:
            _shut_down(each)


def _shut_down(opened: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        # The method of the plain socket: that of a TLS socket takes the state away under the thread that reads.
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
