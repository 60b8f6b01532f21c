"""Where time goes: wall-clock seconds by phase, of a training step and of a whole run."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager


class Timer:
    """Adds up wall-clock seconds by phase; `whole` names the time since the timer was made."""

    def __init__(self, *phases: str, whole: str) -> None:
        self.started = time.perf_counter()
        self.whole = whole
        self.phases = dict.fromkeys(phases, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Generator[None]:
        """Count the block's time to `phase`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[phase] += time.perf_counter() - start

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and in all until now."""
        total = time.perf_counter() - self.started
        return {name: round(value, 4) for name, value in {**self.phases, self.whole: total}.items()}
