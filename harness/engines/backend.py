"""The contract of a backend, and the default one. A suite names a backend; the backend starts the engine of its runs.

To add a backend, write one file with two classes and register the first one under the entry point group `harness.engines`:

- a `Backend`: its fields are the keys of the suite's block, and its `start` returns the second class;
- a `CheckpointEngine` (see `harness.engines.engine`): `generate`, `load`, `prompt_logprobs`, `describe` and `close`.

Evaluation needs nothing more: `harness.evaluation.engine_model` gives any such engine lm-eval's interface. This file imports
no torch, because reading a suite imports the backend that it names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.config.backend_settings import BackendSettings
from harness.config.suite import Suite
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.engines.engine import CheckpointEngine


def _say_nothing(_: str) -> None:
    pass


@dataclass(frozen=True)
class EngineSite:
    """Where and how an engine runs: `cpu` or `cuda`, the weights' dtype, CPU threads (None: all), and its log file.

    `warn` takes a sentence for the user.
    """

    device: str
    dtype: str
    threads: int | None
    log: Path
    warn: Callable[[str], object] = field(default=_say_nothing, compare=False)


class Backend(BackendSettings, ABC):
    """A way to generate rollouts and to evaluate checkpoints; its fields are its settings in the suite."""

    in_process: ClassVar[bool] = False  # whether the models in this process generate, so that no engine is started
    is_shared: ClassVar[bool] = (
        False  # whether several processes use one engine, which has one set of weights at a time
    )
    model_class: ClassVar[str] = "harness.evaluation.engine_model:EngineModel"  # the engine's class for lm-eval

    def check(self, device: str) -> None:
        """Raise `ConfigError` if this backend cannot run on this machine; called before a run does anything."""

    @abstractmethod
    def start(self, checkpoint: Path, site: EngineSite) -> CheckpointEngine:
        """Return an engine with a checkpoint's weights; raises `RunError` with the cause if it does not start."""


class HF(Backend):
    """The default: transformers, with the models in this process."""

    in_process: ClassVar[bool] = True
    beyond_context: ClassVar[int] = 1  # the last token is predicted but not an input
    model_class: ClassVar[str] = "harness.evaluation.hf_model:HarnessHFLM"

    def start(self, checkpoint: Path, site: EngineSite) -> CheckpointEngine:
        """Raise `ConfigError`: models in this process need no engine."""
        raise ConfigError(
            "backend hf generates with the models in this process and starts no engine; use another backend"
        )


def backend_of(suite: Suite) -> Backend:
    """Return the backend that a suite names; raises `ConfigError` for a registered class that is not a `Backend`."""
    if not isinstance(suite.engine, Backend):
        raise ConfigError(
            f"backend: {type(suite.engine).__qualname__} is not a subclass of harness.engines.backend.Backend"
        )
    return suite.engine
