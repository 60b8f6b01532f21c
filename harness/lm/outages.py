"""Which servers do not answer now, so that an outage is reported once and not with every request that meets it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field

QUIET = 60.0  # seconds without a failure that end an outage; else a server that flickers fills the log


@dataclass
class Outages:
    """The time of each server's last failure, and whether it has answered since; threads share one object."""

    _failures: dict[str, tuple[float, bool]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, url: str) -> bool:
        """Note a failure and return whether an outage begins with it: none lasts, or an answer ended the last one."""
        now = time.monotonic()
        with self._lock:
            failed, answered = self._failures.get(url, (-math.inf, True))
            self._failures[url] = (now, False)
            return answered and now - failed >= QUIET

    def answered(self, url: str) -> None:
        """Note an answer."""
        with self._lock:
            if url in self._failures:
                self._failures[url] = (self._failures[url][0], True)
