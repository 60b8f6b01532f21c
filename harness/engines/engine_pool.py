"""The engine of a run, started when it is first needed and shared by all stages."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from harness.config.suite import Suite
from harness.engines.backend import EngineSite, backend_of
from harness.engines.engine import CheckpointEngine
from harness.errors import ConfigError
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
            _free_gpu_memory()
            engine = self.backend.start(checkpoint, self.site)
            _check_engine(engine, self.site.log.stem)
            self.engine, self.config = engine, config
        return self.engine

    def close(self) -> None:
        """Close the engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def _free_gpu_memory() -> None:
    """Return to the GPU what this process no longer uses, such as a scored teacher's memory, which torch keeps reserved."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _check_engine(engine: object, backend: str) -> None:
    """Raise `ConfigError` for an engine of another package that lacks a part of `CheckpointEngine`."""
    parts = ("backend", "generate", "load", "prompt_logprobs", "describe", "close")
    if lacks := [part for part in parts if not hasattr(engine, part)]:
        raise ConfigError(
            f"backend {backend}: {type(engine).__name__}, which its `start` returned, lacks {', '.join(lacks)}; expected "
            f"{', '.join(parts)} (docs/add-a-backend.md)"
        )
