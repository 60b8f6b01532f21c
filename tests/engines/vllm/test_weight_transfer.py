"""Weights over the network to real vLLM servers: routes, handshake and loading are vLLM's, gloo carries the bytes.

NCCL itself needs GPUs. Where anything is missing, the servers take weights from the folder, and a sentence says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.suite import Suite
from harness.engines.backend import EngineSite
from harness.engines.engine import Engine, Sampling
from harness.engines.student import StudentEngine
from harness.engines.transfer import weight_transfer
from harness.engines.transfer.weight_sources import CheckpointWeights
from harness.engines.vllm_server import ServedEngine, VLLMServer
from harness.errors import RunError
from harness.lm.checkpoints import Loaded, load_checkpoint
from harness.lm.replicas import Patience, Replicas
from tests.support.models import dense_logprobs
from tests.support.servers.fake_server import serving
from tests.support.servers.gloo_transfer import GlooGroup, replace_group_of_trainer
from tests.support.servers.vllm import PROMPTS
from tests.support.servers.vllm_serve import vllm_server

pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` installs it")
pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[3]
OPTIONS = (
    "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs",
    "--worker-extension-cls", "tests.support.servers.gloo_transfer.WeightsByGloo",
)  # fmt: skip


@pytest.fixture(scope="module")
def url(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """One server for all tests of this module, which takes weights over the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        log, option = tmp_path_factory.mktemp("vllm") / "log.txt", ("--weight-transfer-config", '{"backend": "nccl"}')
        with vllm_server(student_folder, log, *OPTIONS, *option, name="student") as address:
            yield address


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send from this process as from a GPU."""
    replace_group_of_trainer(monkeypatch)
    monkeypatch.setattr(weight_transfer, "_sends_from", lambda _: True)


def start(url: str, checkpoint: Path, folder: Path) -> ServedEngine:
    """Return an engine that has no folder in common with the server."""
    backend = VLLMServer.model_validate({"urls": [url], "shared_folder": "/nowhere", "deadline": 900, "timeout": 900})
    engine = backend.start(checkpoint, EngineSite("cpu", "float32", 1, folder / "log.txt"))
    assert isinstance(engine, ServedEngine)
    return engine


def expect_scores_of(student: Loaded, engine: Engine) -> None:
    sampling = Sampling(12, stop_ids=student.renderer.stop_ids, seed=3)
    for prompt, done in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        logprobs = dense_logprobs(student.model, prompt + done.tokens)[len(prompt) - 1 : -1]
        expected = logprobs[range(len(done.tokens)), done.tokens]
        assert done.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.usefixtures("sending")
def test_servers_without_a_common_folder_have_the_trainers_weights_after_each_hand_over(
    url: str, student: Loaded, changed: Path, micro: Suite, tmp_path: Path
):
    # `changed` is the student's own model, changed in place and saved: the checkpoint that the servers begin with.
    engine = start(url, changed, tmp_path)
    assert engine.takes_tensors
    expect_scores_of(load_checkpoint(changed, micro.student, "cpu"), engine)
    trained, generator = StudentEngine(engine, student.model), torch.Generator().manual_seed(2)
    for _ in range(3):
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        expect_scores_of(student, trained)
    engine.close()


@pytest.mark.usefixtures("sending")
def test_a_second_run_meets_the_same_server_again(url: str, student_folder: Path, tmp_path: Path):
    for _ in range(2):
        engine = start(url, student_folder, tmp_path)
        assert len(engine.generate(PROMPTS, Sampling(4))) == len(PROMPTS)
        engine.close()


class ReceivingServer:
    """A replica of some workers without vLLM: it joins the group and keeps what each worker receives."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.groups: list[GlooGroup] = []
        self.received: list[dict[str, torch.Tensor]] = []

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/get_world_size":
            return 200, {"world_size": self.workers}
        if path == "/init_weight_transfer_engine":
            place = body["init_info"]
            ranks = range(place["rank_offset"], place["rank_offset"] + self.workers)
            where = place["master_address"], place["master_port"]
            self.groups = self._each(lambda rank: GlooGroup(*where, rank, place["world_size"]), ranks)
        if path == "/update_weights":
            self.received = self._each(lambda group: self._receive(group, body["update_info"]), self.groups)
        return 200, {"message": "done"}

    def _each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(work, items))

    def _receive(self, group: GlooGroup, told: dict[str, Any]) -> dict[str, torch.Tensor]:
        found = {}
        for name, dtype, shape in zip(told["names"], told["dtype_names"], told["shapes"], strict=True):
            found[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            group.broadcast(found[name], 0)
        return found


@pytest.mark.usefixtures("sending")
def test_one_broadcast_reaches_all_workers_of_replicas_of_different_size(student_folder: Path):
    servers = [ReceivingServer(2), ReceivingServer(1)]
    generator = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(3, 5, generator=generator), "b.c": torch.randn(7, generator=generator).bfloat16()}
    with ExitStack() as stack:
        urls = tuple(stack.enter_context(serving(server)) for server in servers)
        replicas = Replicas(urls, Patience(timeout=30, deadline=30), 4, role="rollout server")
        stack.callback(replicas.close)
        transfer = weight_transfer.WeightTransfer(replicas, "cpu", 30)
        for sent in (tensors, {name: -tensor for name, tensor in tensors.items()}):
            transfer.send_tensors(sent)
            for worker in [worker for server in servers for worker in server.received]:
                assert worker.keys() == sent.keys()
                assert all(torch.equal(worker[name], sent[name]) for name in sent)
        transfer.send_checkpoint(student_folder)
        on_disk = dict(CheckpointWeights(student_folder, "cpu"))
        assert all(torch.equal(servers[1].received[0][name], tensor) for name, tensor in on_disk.items())
        transfer.close()


@pytest.mark.usefixtures("sending")
def test_weights_that_a_server_cannot_load_end_in_a_sentence_and_not_in_waiting(
    url: str, student_folder: Path, tmp_path: Path
):
    # The last test of the module: afterwards the server has to be started again.
    engine = start(url, student_folder, tmp_path)
    with pytest.raises(RunError, match="not take new weights"):
        engine.take({"model.norm.weight": torch.zeros(3)})
    engine.close()
