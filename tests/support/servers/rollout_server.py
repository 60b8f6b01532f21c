"""`vllm serve` with the harness's worker extension in small: it takes weights from a folder and scores prompts with them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoModelForCausalLM

from harness.engines.vllm_worker import WeightsInPlace
from tests.support.servers.fake_server import FakeServer


class Worker(WeightsInPlace):
    """What the worker extension asks of vLLM's worker."""

    def __init__(self, checkpoint: Path) -> None:
        self.reload_weights(str(checkpoint))
        model = SimpleNamespace(
            dtype="torch.float32", logprobs_mode="processed_logprobs", hf_config=self.get_model().config
        )
        self.vllm_config = SimpleNamespace(model_config=model, weight_transfer_config=None)

    def reload_weights(self, weights_path: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(weights_path)

    def get_model(self) -> Any:
        return self.model


class RolloutServer(FakeServer):
    """A replica that serves `checkpoint` until it takes other weights; `worker` is its only one."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(None, None, "student")
        self.checkpoint, self.worker = checkpoint, Worker(checkpoint)
        self.asked: list[str] = []

    def restart(self) -> None:
        """Serve the checkpoint of the start again."""
        self.worker = Worker(self.checkpoint)

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """See `FakeServer`."""
        if path == "/version":
            return 200, {"version": "0.31.0"}
        if path == "/reset_prefix_cache":
            return 200, b""
        if path != "/collective_rpc":
            self.model = self.worker.get_model()
            return super().answer(path, body)
        self.asked.append(body["method"])
        try:
            return 200, {"results": [getattr(self.worker, body["method"])(**body.get("kwargs", {}))]}
        except Exception as error:
            return 500, {"error": {"message": f"Call to collective_rpc method failed: {error}"}}
