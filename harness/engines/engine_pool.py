"""The engine of a run, started when something first needs it and shared by all its stages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from harness.config.suite import Suite
from harness.engines.backend import EngineSite, backend_of
from harness.engines.engine import CheckpointEngine
from harness.lm.checkpoints import config_digest

log = logging.getLogger(__name__)


class EnginePool:
    """Holds the engine of the backend that a suite names; its output goes to `<folder>/<backend>.txt`, sentences to `warn`."""

    def __init__(self, suite: Suite, device: str, folder: Path, warn: Callable[[str], object] = log.warning) -> None:
        self.backend = backend_of(suite)
        self.site = EngineSite(device, suite.student.dtype, suite.threads, folder / f"{suite.backend}.txt", warn)
        self.engine: CheckpointEngine | None = None
        self.config = ""

    def check(self) -> None:
        """Raise `ConfigError` where the backend cannot run on this machine."""
        self.backend.check(self.site.device)

    def take(self, checkpoint: Path) -> CheckpointEngine | None:
        """Return the engine, started on `checkpoint` if none runs for its configuration; None for a backend without one.

        An engine that takes the weights of a different architecture may load them in part without an error, so each
        configuration gets a new engine.
        """
        if self.backend.in_process:
            return None
        config = config_digest(checkpoint)
        if self.engine is None or config != self.config:
            self.close()
            self.engine, self.config = self.backend.start(checkpoint, self.site), config
        return self.engine

    def close(self) -> None:
        """End the engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None
