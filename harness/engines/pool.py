"""The one engine of a run that lives outside this process, started when something first needs it."""

from __future__ import annotations

from pathlib import Path

from harness.config.suite import Suite
from harness.engines.vllm import EngineSite, VLLMEngine, check_vllm
from harness.lm.checkpoints import config_digest


class EnginePool:
    """Holds the engine that a suite's `backend` names; with backend `hf` there is none, generation is this process's own."""

    def __init__(self, suite: Suite, device: str, log: Path) -> None:
        self.suite = suite
        self.place = EngineSite(device, suite.student.dtype, suite.threads, log)
        self.held: VLLMEngine | None = None
        self.config = ""

    def check(self) -> None:
        """Raise `ConfigError` where the backend is not installed."""
        if self.suite.backend == "vllm":
            check_vllm(self.place.device)

    def take(self, checkpoint: Path) -> VLLMEngine | None:
        """Return the engine, started on `checkpoint` where none runs for its configuration; None where the backend needs none.

        vLLM takes the weights of another architecture in part, without a word: such a checkpoint gets an engine of its own.
        """
        if self.suite.backend != "vllm":
            return None
        config = config_digest(checkpoint)
        if self.held is None or config != self.config:
            self.close()
            self.held, self.config = VLLMEngine(checkpoint, self.suite.vllm, self.place), config
        return self.held

    def close(self) -> None:
        """End the engine's process."""
        if self.held is not None:
            self.held.close()
            self.held = None
