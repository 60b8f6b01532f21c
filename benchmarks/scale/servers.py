"""Measure a real `vllm serve` on this machine: scores as a teacher, and weights that it receives in training."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from benchmarks.measure import Measurement, in_turn, per_second
from harness.config.load import load_suite
from harness.config.models import Scratch
from harness.engines.backend import EngineSite
from harness.engines.engine import Sampling
from harness.engines.hf import HFEngine
from harness.engines.student import StudentEngine
from harness.engines.vllm_server import EXTENSION, VLLMServer
from harness.lm.checkpoints import Loaded, load_checkpoint
from harness.lm.logprobs import TeacherRequest
from harness.lm.rollouts import Example, Rollout, make_batches
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from harness.teachers.local import open_local
from harness.teachers.server import Server
from harness.teachers.teacher import OpenTeacher, TeacherSite
from tests.support.models import write_yaml
from tests.support.servers.vllm import wide_suite
from tests.support.servers.vllm_serve import vllm_server

RESPONSES, LENGTH, TOP_K = 64, 64, 32
OPTIONS = (
    "--max-logprobs", str(TOP_K), "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs",
    "--worker-extension-cls", EXTENSION,
)  # fmt: skip


def server_rows(folder: Path, rounds: int) -> Iterator[Measurement]:
    """Yield positions scored per second, served and local, and the time of a hand-over of weights against a start."""
    suite, library = load_suite(str(write_yaml(folder / "served.yaml", wide_suite()))), TaskLibrary()
    assert isinstance(suite.teacher, Scratch)
    teacher, started = checkpoint_of(suite.teacher, 0, library), checkpoint_of(suite.student, 0, library)
    student = load_checkpoint(started, suite.student, "cpu")
    with vllm_server(teacher, folder / "teacher.txt", "--max-logprobs", str(TOP_K)) as url:
        served = Server.model_validate({"kind": "server", "urls": [url], "model": "teacher", "max_logprobs": TOP_K})
        teachers = {
            "served": served.open(student, TeacherSite("cpu", folder)),
            "local": open_local(suite.teacher, teacher, student, "cpu"),
        }
        rates = in_turn({name: per_second(_scoring(each, student)) for name, each in teachers.items()}, rounds)
    what = f"teacher's scores, top {TOP_K}, served"
    yield Measurement(what, "positions/s", rates["served"], "in the run's process", rates["local"])
    beginning = time.perf_counter()
    with (
        mock.patch.dict(os.environ, VLLM_SERVER_DEV_MODE="1"),
        vllm_server(started, folder / "student.txt", *OPTIONS, name="student") as url,
    ):
        cold = time.perf_counter() - beginning
        backend = VLLMServer.model_validate({"urls": [url], "shared_folder": str(folder)})
        engine = backend.start(started, EngineSite("cpu", "float32", 1, folder / "log.txt"))
        handed = StudentEngine(engine, student.model)
        ours = HFEngine(student.model, student.renderer.tokenizer, RESPONSES)
        seconds = in_turn({"one": lambda seed: _one_token(handed, seed)}, rounds)["one"]
        prompts = [list(range(5, 21))] * RESPONSES
        made = {
            "served": lambda seed: float(sum(len(c.tokens) for c in engine.generate(prompts, _sampling(seed)))),
            "ours": lambda seed: float(sum(len(c.tokens) for c in ours.generate(prompts, _sampling(seed)))),
        }
        tokens = in_turn({name: per_second(work) for name, work in made.items()}, rounds)
        engine.close()
    handed_over, start = [1000 * each for each in seconds], [1000 * cold] * rounds
    yield Measurement(
        "weights handed to a server, one token answered", "ms, less is better", handed_over, "its start", start
    )
    yield Measurement("rollouts from a server", "response tokens/s", tokens["served"], "our engine", tokens["ours"])


def _sampling(seed: int) -> Sampling:
    return Sampling(LENGTH, seed=seed)


def _one_token(engine: StudentEngine, seed: int) -> float:
    started = time.perf_counter()
    engine.generate([[5, 6, 7]], Sampling(1, seed=seed))
    return time.perf_counter() - started


def _scoring(teacher: OpenTeacher, student: Loaded):
    size = len(student.renderer.tokenizer)

    def score(seed: int) -> float:
        ids = [[(7 * seed + 3 * row + 5 * at) % size for at in range(LENGTH)] for row in range(RESPONSES)]
        rollouts = [Rollout(Example("task", str(row), {}, own[:8], []), own[8:], "stop") for row, own in enumerate(ids)]
        batches = make_batches(rollouts, "sequence_mean", 16, "cpu")
        return float(sum(len(teacher.score(batch, TeacherRequest(top_k=TOP_K), 1.0).sampled) for batch in batches))

    return score
