"""Which servers do not answer now, so that an outage is reported once and not with every request that meets it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

QUIET = (
    60.0  # seconds without a failure after which an answer ends an outage; else a server that flickers fills the log
)


@dataclass
class Outages:
    """The time of each server's last failure while its outage lasts; threads share one object."""

    _failures: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, url: str) -> bool:
        """Note a failure and return whether an outage begins with it."""
        with self._lock:
            begins = url not in self._failures
            self._failures[url] = time.monotonic()
            return begins

    def answered(self, url: str) -> None:
        """Note an answer, which ends an outage without recent failures."""
        with self._lock:
            if url in self._failures and time.monotonic() - self._failures[url] >= QUIET:
                del self._failures[url]
