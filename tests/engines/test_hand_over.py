"""Weights handed over to rollout servers through a folder: a hand-over that cannot work ends soon, and says what to do."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from harness.engines.backend import EngineSite
from harness.engines.vllm_server import VLLMServer, _shared_copy
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
