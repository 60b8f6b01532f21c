"""What vLLM servers say of themselves: where weights cannot go over the network they go through a folder, with a sentence.

A server that was started with other settings than the run's is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from harness.engines.backend import EngineSite
from harness.engines.transfer import weight_transfer
from harness.engines.transfer.weight_sources import CheckpointWeights, TensorWeights
from harness.engines.vllm_server import ServedEngine, VLLMServer
from harness.errors import ModelError, RunError
from harness.lm.replicas import Patience, Replicas, UnavailableError
from tests.support.evaluation import with_config
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


class DescribedServer:
    """Answers what a server says of its settings; `worker` is None for one with an older worker extension."""

    def __init__(self, worker: dict[str, Any] | None) -> None:
        self.worker = worker
        self.asked: list[str] = []

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append(path)
        if path == "/version":
            return 200, {"version": "0.31.0"}
        if body["method"] == "describe_server" and self.worker is not None:
            return 200, {"results": [self.worker]}
        return 500, {"error": {"message": "no such method"}}


def start_on(server: DescribedServer, checkpoint: Path, **settings: Any) -> None:
    with serving(server) as url:
        backend = VLLMServer.model_validate({"urls": [url], "timeout": 5, "deadline": 0, **settings})
        backend.start(checkpoint, EngineSite("cpu", "float32", 1, Path("log.txt"))).close()


def described(checkpoint: Path, **changes: Any) -> DescribedServer:
    config = AutoConfig.from_pretrained(checkpoint).to_dict()
    worker = {"dtype": "float32", "logprobs_mode": "processed_logprobs", "config": json.dumps(config), "tag": ""}
    return DescribedServer({**worker, **changes})


@pytest.mark.pitfall(
    "a vLLM server serves in the model's own dtype and with raw log-probabilities, whatever the run expects of it",
    area="vLLM",
    guard="`harness/engines/served_settings.py` asks the server and refuses it",
    evidence="the servers are not asked",
)
@pytest.mark.parametrize(
    ("server", "settings", "expected"),
    [
        ({"dtype": "bfloat16"}, {}, r"computes in bfloat16, expected float32 .*--dtype float32"),
        ({}, {"dtype": "float16"}, r"computes in float32, expected float16 .*--dtype float16"),
        ({"logprobs_mode": "raw_logprobs"}, {}, r"raw_logprobs, expected processed_logprobs"),
    ],
)
def test_a_server_with_other_settings_than_the_suites_is_refused(
    server: dict[str, str], settings: dict[str, str], expected: str, student_folder: Path
):
    asked = described(student_folder, **server)
    with pytest.raises(RunError, match=expected):
        start_on(asked, student_folder, **settings)
    assert asked.asked == ["/version", "/collective_rpc"], "no weights were handed over"


@pytest.mark.pitfall(
    "a vLLM server answers with the configuration that it was started with, whatever checkpoint's weights it takes",
    area="vLLM",
    guard="`harness/engines/served_settings.py` refuses a checkpoint whose settings differ",
    evidence="the configurations are not compared",
)
def test_a_checkpoint_with_another_configuration_than_the_servers_is_refused(student_folder: Path, tmp_path: Path):
    rope = {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}
    asked = described(with_config(student_folder, tmp_path / "rope", **rope))
    with pytest.raises(RunError, match=r"rope_parameters\.rope_theta \(5000\.0 and \d+\.0\);"):
        start_on(asked, student_folder)
    assert len(asked.asked) == 2
    other_ids = described(with_config(student_folder, tmp_path / "ids", eos_token_id=7, transformers_version="4.0.0"))
    with pytest.raises(RunError, match="did not take new weights"):  # which this server cannot
        start_on(other_ids, student_folder)


def test_a_server_that_does_not_tell_its_settings_is_refused_with_what_it_lacks(student_folder: Path):
    with pytest.raises(RunError, match=r"VLLM_SERVER_DEV_MODE=1 .*--worker-extension-cls harness\."):
        start_on(DescribedServer(None), student_folder)


def test_a_server_with_the_worker_extension_of_an_earlier_version_is_refused(student_folder: Path):
    older = described(student_folder)
    assert older.worker is not None
    del older.worker["tag"]
    with pytest.raises(RunError, match=r"http://.* older worker extension.* install"):
        start_on(older, student_folder)
    assert older.asked == ["/version", "/collective_rpc"], "no weights were handed over"


def test_a_checkpoint_is_sent_as_it_lies_on_the_disk(student_folder: Path, tmp_path: Path):
    read = CheckpointWeights(student_folder, "cpu")
    tensors = dict(read)
    assert read.describe() == TensorWeights(tensors).describe()
    assert [name for name, _, _ in read.describe()] == list(tensors)
    assert all(tensor.device.type == "cpu" for tensor in tensors.values())
    with pytest.raises(ModelError, match="safetensors"):
        CheckpointWeights(tmp_path, "cpu")


def test_the_threads_of_a_hand_over_that_a_server_does_not_answer_end_with_the_engine():
    arrived, ended = threading.Event(), threading.Event()

    def wait(*_: Any) -> tuple[int, Any]:
        arrived.set()
        ended.wait()
        return 0, None

    with serving(SimpleNamespace(answer=wait)) as url:
        replicas = Replicas((url,), Patience(timeout=120.0), 1, role="rollout server")
        fleet = weight_transfer._Fleet(replicas)
        fleet.sizes = [1]
        hand_over = ThreadPoolExecutor(1).submit(fleet.start_weight_update)
        try:
            assert arrived.wait(60)
            replicas.close()
            assert isinstance(hand_over.exception(timeout=60), UnavailableError)
        finally:
            ended.set()
