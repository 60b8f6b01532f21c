"""Exact ids from a real `vllm serve` with its second model runner, whose Triton kernels run in the interpreter on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.config.load import load_suite
from harness.config.models import Scratch
from harness.lm.checkpoints import load_checkpoint
from harness.lm.logprobs import TeacherRequest
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from harness.teachers.exact_ids import GENERATE
from harness.teachers.local import open_local
from harness.teachers.score_checks import ask
from harness.teachers.server import Server
from harness.teachers.teacher import TeacherSite
from tests.support.models import write_yaml
from tests.support.servers import vllm_serve
from tests.support.servers.teachers import random_batches, same_scores
from tests.support.servers.vllm import wide_suite

pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` installs it")
pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.vllm
KERNELS = Path(vllm_serve.__file__).parent / "triton_on_cpu"
OPTIONS = ("--max-logprobs", "64", "--enable-scale-out")


def test_a_real_server_gives_the_local_teachers_scores_of_exact_ids(
    library: TaskLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite = load_suite(str(write_yaml(tmp_path / "wide.yaml", wide_suite())))
    assert isinstance(suite.teacher, Scratch)
    folder = checkpoint_of(suite.teacher, 0, library)
    student = load_checkpoint(checkpoint_of(suite.student, 0, library), suite.student, "cpu")
    local = open_local(suite.teacher, folder, student, "cpu")
    monkeypatch.setenv("PYTHONPATH", f"{KERNELS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("TRITON_INTERPRET", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, "1")
    log = tmp_path / "log.txt"
    with vllm_serve.vllm_server(folder, log, *OPTIONS) as url:
        kind = Server.model_validate(
            {"kind": "server", "urls": [url], "model": "teacher", "max_logprobs": 64, "timeout": 600, "deadline": 900}
        )
        teacher = kind.open(student, TeacherSite("cpu", tmp_path))
        assert teacher.exact is not None
        for request in (TeacherRequest(), TeacherRequest(top_k=8)):
            for batch in random_batches(student):
                assert same_scores(ask(teacher, batch, request, 1.0), local.score(batch, request, 1.0))
        teacher.close()
    asked = log.read_text(errors="replace").count(f"POST {GENERATE}")
    assert asked == 1 + sum(len(batch.rollouts) for batch in random_batches(student)), "the offer and each response"
