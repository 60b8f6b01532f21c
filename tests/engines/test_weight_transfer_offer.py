"""Where weights cannot go over the network, servers take them from a folder, and a user with a GPU reads what is missing."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.engines.backend import EngineSite
from harness.engines.transfer import weight_transfer
from harness.engines.transfer.weight_sources import CheckpointWeights, TensorWeights
from harness.engines.vllm_server import ServedEngine, VLLMServer
from harness.errors import ModelError
from tests.support.servers.fake_server import serving


class RolloutServer:
    """Answers what a server says of its weight transfer; `offer` is None for one with an older worker extension."""

    def __init__(self, offer: str | None) -> None:
        self.offer = offer
        self.asked: list[str] = []

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append(path)
        if path == "/collective_rpc" and body["method"] == "describe_transfer" and self.offer is not None:
            return 200, {"results": [{"backend": self.offer}]}
        return 500, {"error": {"message": "no such method"}}


def started(server: RolloutServer, device: str, transfer: str = "auto") -> Generator[tuple[ServedEngine, list[str]]]:
    sentences: list[str] = []
    with serving(server) as url:
        backend = VLLMServer.model_validate({"urls": [url], "transfer": transfer, "timeout": 5, "deadline": 5})
        engine = ServedEngine(backend, EngineSite(device, "float32", 1, Path("log.txt"), sentences.append))
        yield engine, sentences
        engine.close()


@pytest.mark.parametrize(
    ("offer", "device", "transfer", "has_vllm", "expected"),
    [
        ("nccl", "cuda", "auto", True, None),
        ("", "cuda", "auto", True, "--weight-transfer-config"),
        ("ipc", "cuda:0", "auto", True, "--weight-transfer-config"),
        (None, "cuda", "auto", True, "--weight-transfer-config"),
        ("nccl", "cuda", "auto", False, "vLLM is not installed"),
        ("nccl", "cuda", "folder", True, ""),
        ("nccl", "cpu", "auto", True, ""),
    ],
)
def test_weights_go_over_the_network_where_all_is_there_and_else_through_the_folder(
    offer: str | None, device: str, transfer: str, has_vllm: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(weight_transfer.importlib.util, "find_spec", lambda _: object() if has_vllm else None)
    for engine, sentences in started(RolloutServer(offer), device, transfer):
        assert engine.takes_tensors == (expected is None)
        assert len(sentences) == bool(expected)
        assert all(str(expected) in sentence for sentence in sentences)


def test_a_checkpoint_is_sent_as_it_lies_on_the_disk(student_folder: Path, tmp_path: Path):
    read = CheckpointWeights(student_folder, "cpu")
    tensors = dict(read)
    assert read.describe() == TensorWeights(tensors).describe()
    assert [name for name, _, _ in read.describe()] == list(tensors)
    assert all(tensor.device.type == "cpu" for tensor in tensors.values())
    with pytest.raises(ModelError, match="safetensors"):
        CheckpointWeights(tmp_path, "cpu")
