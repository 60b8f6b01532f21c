"""The engine of a run, started when it is first needed and shared by all stages."""

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
    """Owns the engine of a suite's backend; its output goes to `<folder>/<backend>.txt`, and its warnings to `warn`."""

    def __init__(self, suite: Suite, device: str, folder: Path, warn: Callable[[str], object] = log.warning) -> None:
        self.backend = backend_of(suite)
        self.site = EngineSite(device, suite.student.dtype, suite.threads, folder / f"{suite.backend}.txt", warn)
        self.engine: CheckpointEngine | None = None
        self.config = ""

    def check(self) -> None:
        """Raise `ConfigError` if the backend cannot run on this machine."""
        self.backend.check(self.site.device)

    def take(self, checkpoint: Path) -> CheckpointEngine | None:
        """Return the engine, started on `checkpoint` if none runs for its configuration; None for a backend without one.

        Each configuration gets a new engine, because an engine may silently load the weights of a different architecture in
        part.
        """
        if self.backend.in_process:
            return None
        config = config_digest(checkpoint)
        if self.engine is None or config != self.config:
            self.close()
            self.engine, self.config = self.backend.start(checkpoint, self.site), config
        return self.engine

    def close(self) -> None:
        """Close the engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None
