"""Weights handed over to rollout servers: what cannot work ends soon and says what to do, and a lost hand-over is found."""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.engines.backend import EngineSite
from harness.engines.vllm_server import ServedEngine, VLLMServer, _shared_copy
from harness.errors import RunError
from tests.support.servers.fake_server import serving
from tests.support.servers.rollout_server import RolloutServer


class ElsewhereServer(RolloutServer):
    """A server on a machine that does not see the folder."""

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/collective_rpc" and "folder" in body.get("kwargs", {}):
            body = {**body, "kwargs": {**body["kwargs"], "folder": "/nowhere"}}
        return super().answer(path, body)


@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_a_server_cannot_read_end_soon_with_its_answer_and_the_folder(
    shared: bool, student_folder: Path, tmp_path: Path
):
    server, own = ElsewhereServer(student_folder), {"shared_folder": str(tmp_path)} if shared else {}
    with serving(server) as url:
        backend = VLLMServer.model_validate({"urls": [url], "deadline": 600, **own})
        with pytest.raises(RunError, match="not see the folder /nowhere") as caught:
            backend.start(student_folder, EngineSite("cpu", "float32", 1, tmp_path / "log.txt"))
    said = str(caught.value)
    assert url in said
    assert "vllm_server.shared_folder" in said
    assert (str(tmp_path) in said) == shared
    assert server.asked.count("take_weights") == 5
    assert not list(tmp_path.iterdir()), "the copy is removed"


def test_other_users_can_read_the_copy_of_private_weights(tmp_path: Path):
    private = tmp_path / "private"
    (private / "inner").mkdir(parents=True)
    for file in (private / "a.safetensors", private / "inner" / "b.json"):
        file.touch(mode=0o600)
    for folder in (private, private / "inner"):
        folder.chmod(0o700)
    with _shared_copy(private, tmp_path / "shared") as copy:
        modes = {path.relative_to(copy): stat.S_IMODE(path.stat().st_mode) for path in (copy, *copy.rglob("*"))}
        expected = {".": 0o755, "a.safetensors": 0o644, "inner": 0o755, "inner/b.json": 0o644}
        assert modes == {Path(name): mode for name, mode in expected.items()}


@pytest.fixture
def replicas(student_folder: Path) -> list[RolloutServer]:
    """Two servers that were started with the very weights that are handed over."""
    return [RolloutServer(student_folder) for _ in range(2)]


@pytest.fixture
def served(replicas: list[RolloutServer], student_folder: Path, tmp_path: Path) -> Generator[ServedEngine]:
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(server)) for server in replicas]
        backend = VLLMServer.model_validate({"urls": urls, "deadline": 600})
        engine = backend.start(student_folder, EngineSite("cpu", "float32", 1, tmp_path / "log.txt"))
        assert isinstance(engine, ServedEngine)
        yield engine
        engine.close()


PROMPTS = [[5, 6, 7, 8], [9, 10]]


@pytest.mark.pitfall(
    "a rollout server that is started again, with weights near the trained ones, goes on answering",
    area="vLLM",
    guard="a worker keeps the tag of its last hand-over, which `harness/engines/same_weights.py` compares with every answer",
    evidence="without the comparison of tags the restarted server's answers are used",
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_restarted_replica_is_found_with_the_first_answers_even_if_it_has_equal_weights(
    number: int, served: ServedEngine, replicas: list[RolloutServer], student_folder: Path
):
    assert len(served.prompt_logprobs(PROMPTS)) == len(PROMPTS)
    replicas[number].restart()
    with pytest.raises(RunError, match=f"{served.replicas.urls[number]} has other weights .*started again"):
        served.prompt_logprobs(PROMPTS)
    served.load(student_folder)
    assert len(served.prompt_logprobs(PROMPTS)) == len(PROMPTS)


def test_a_replica_to_which_another_process_hands_weights_over_is_found(
    served: ServedEngine, student_folder: Path, tmp_path: Path
):
    other = ServedEngine(served.backend, EngineSite("cpu", "float32", 1, tmp_path / "log.txt"))
    other.load(student_folder)
    with pytest.raises(RunError, match=r"http://.* other weights .*another process"):
        served.prompt_logprobs(PROMPTS)
    assert len(other.prompt_logprobs(PROMPTS)) == len(PROMPTS)
    other.close()


def test_a_replica_that_cannot_tell_its_weights_any_more_is_found(served: ServedEngine, replicas: list[RolloutServer]):
    replicas[1].worker = SimpleNamespace(get_model=replicas[0].worker.get_model)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RunError, match=f"{served.replicas.urls[1]} does not tell which weights"):
        served.prompt_logprobs(PROMPTS)


class Network:
    """Stands for a weight transfer, which the test does not do; `during` happens while the weights are sent."""

    def __init__(self, during: Callable[[], None]) -> None:
        self.during = during

    def send_checkpoint(self, _: Path) -> None:
        self.during()

    def send_tensors(self, _: Any) -> None:
        self.during()

    def close(self) -> None:
        pass


def test_a_replica_that_restarts_while_weights_go_over_the_network_does_not_pass_for_one_that_got_them(
    served: ServedEngine, replicas: list[RolloutServer], student_folder: Path
):
    served.transfer = Network(lambda: None)  # pyright: ignore[reportAttributeAccessIssue]
    served.take({})
    assert len(served.prompt_logprobs(PROMPTS)) == len(PROMPTS)
    served.transfer = Network(replicas[1].restart)  # pyright: ignore[reportAttributeAccessIssue]
    for hand_over in (lambda: served.take({}), lambda: served.load(student_folder)):
        with pytest.raises(RunError, match=f"{served.replicas.urls[1]} did not take new weights: .*started again"):
            hand_over()
