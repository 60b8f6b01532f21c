"""A real `vllm serve` on a CPU as teacher: losses and gradients of the local model and of the cache, and faults in between.

`SERVER_FAULTS` sets how many faults are tried.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adapters.aopd import AOPD
from adapters.kl import ForwardKL
from adapters.loop.prompts import prompt_batches
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD
from harness.config.load import load_suite
from harness.config.models import Scratch
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import HarnessError, TrainingError
from harness.lm.checkpoints import Loaded, load_checkpoint
from harness.lm.logprobs import TeacherRequest
from harness.lm.rollouts import Example
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from harness.pipeline.run import run
from harness.teachers.cache import CachedTeacher
from harness.teachers.exact_ids import GENERATE
from harness.teachers.local import LocalTeacher, open_local
from harness.teachers.score_checks import ask
from harness.teachers.score_store import ScoreStore
from harness.teachers.server import Server
from harness.teachers.teacher import OpenTeacher, TeacherSite
from tests.support.models import ScriptedEngine, context, write_yaml
from tests.support.processes import started_by
from tests.support.servers.fake_server import serving
from tests.support.servers.fault_proxy import FaultProxy
from tests.support.servers.teachers import random_batches, same_scores
from tests.support.servers.vllm import wide_suite
from tests.support.servers.vllm_serve import ON_CPU, SERVE, vllm_server
from tests.support.stages import Recorder

pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` installs it")
pytestmark = pytest.mark.vllm
METHODS: dict[str, LoopAdapter] = {"opd": OPD(), "aopd": AOPD(top_k=8), "fkl": ForwardKL(top_k=8)}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return load_suite(str(write_yaml(tmp_path_factory.mktemp("suite") / "wide.yaml", wide_suite())))


@pytest.fixture(scope="module")
def student(suite: Suite, library: TaskLibrary) -> Loaded:
    return load_checkpoint(checkpoint_of(suite.student, 0, library), suite.student, "cpu")


@pytest.fixture(scope="module")
def local(suite: Suite, student: Loaded, library: TaskLibrary) -> LocalTeacher:
    assert isinstance(suite.teacher, Scratch)
    return open_local(suite.teacher, checkpoint_of(suite.teacher, 0, library), student, "cpu")


@pytest.fixture(scope="module")
def url(suite: Suite, library: TaskLibrary, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """One server for all tests of this module."""
    assert isinstance(suite.teacher, Scratch)
    folder = checkpoint_of(suite.teacher, 0, library)
    log, options = tmp_path_factory.mktemp("vllm") / "log.txt", ("--max-logprobs", "32", "--enable-scale-out")
    with vllm_server(folder, log, *options) as address:
        yield address


def settings(*urls: str, **changes: Any) -> Server:
    quick = {"start_deadline": 60.0, "deadline": 120.0, "max_logprobs": 32}
    return Server.model_validate({"kind": "server", "urls": urls, "model": "teacher", **quick, **changes})


def gradients(adapter: LoopAdapter, student: Loaded, teacher: OpenTeacher, recorder: type[Recorder]) -> Recorder:
    """Return what the optimiser sees in one step on fixed responses, taught by a teacher."""
    examples: list[Example] = []
    for batch in random_batches(student):
        examples += [Example("fake", r.example.item_id, {}, r.example.prompt, r.response) for r in batch.rollouts]
    budget = {"prompts_per_step": len(examples), "max_new_tokens": 16, "micro_batch": 4}
    order = [e.target for e in next(prompt_batches(context(None, ScriptedEngine([]), examples, budget)))]
    adapter.train_stage(context(student.model, ScriptedEngine(order), examples, budget, teacher))
    return recorder.made[-1]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_served_cached_and_local_teachers_give_the_same_losses_and_gradients(
    name: str, url: str, student: Loaded, local: LocalTeacher, recorder: type[Recorder], tmp_path: Path
):
    served = settings(url).open(student, TeacherSite("cpu", tmp_path))
    store = ScoreStore(tmp_path / "scores.db")
    teachers = [
        local,
        served,
        CachedTeacher(store, served.identity, served),
        CachedTeacher(store, served.identity, None),
    ]
    expected, *found = [gradients(METHODS[name], student, teacher, recorder) for teacher in teachers]
    for other in found:
        assert other.losses == pytest.approx(expected.losses, abs=1e-5)
        for key, value in expected.gradients[0].items():
            assert float((other.gradients[0][key] - value).abs().max()) <= 1e-5 * max(1.0, float(value.abs().max())), (
                key
            )
    served.close()


def test_a_whole_run_with_a_served_teacher_logs_the_figures_of_the_local_one(url: str, tmp_path: Path):
    logs = []
    shortened = {"stages": ["tiny_weather"], "probes": [], "adapters": {"aopd": {}}}
    for name, changes in (("local", {}), ("served", {"teacher": settings(url).model_dump(mode="json")})):
        file = write_yaml(tmp_path / f"{name}.yaml", {**wide_suite(), **shortened, **changes})
        path = run(RunSpec(load_suite(str(file)), "aopd", 0, out=tmp_path / name))
        logs.append((path / "stage_1_tiny_weather/train/steps.jsonl").read_text().splitlines())
    first, second = ([json.loads(line) for line in log] for log in logs)
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        for figure in ("loss", "entropy", "advantage_mean", "routed_fkl", "teacher_top_mass"):
            assert other[figure] == pytest.approx(one[figure], abs=1e-4), figure


def test_a_server_on_a_cpu_refuses_exact_ids_and_is_asked_for_its_top_k(
    url: str, student: Loaded, local: LocalTeacher, tmp_path: Path
):
    sampling = {"max_tokens": 1, "prompt_logprob_token_ids": [5, 6], "prompt_logprob_start": 0}
    body = {"model": "teacher", "token_ids": [5, 6, 5], "sampling_params": sampling}
    refused = httpx.post(f"{url}{GENERATE}", json=body, trust_env=False)
    assert refused.status_code == 400
    assert "V2 model runner" in refused.text
    served = settings(url).open(student, TeacherSite("cpu", tmp_path))
    assert served.exact is None
    for batch in random_batches(student):
        assert same_scores(ask(served, batch, TeacherRequest(), 1.0), local.score(batch, TeacherRequest(), 1.0))
    served.close()


def test_what_the_server_refuses_is_one_sentence(url: str, student: Loaded, tmp_path: Path):
    with pytest.raises(TrainingError, match="33"):
        settings(url, max_logprobs=33).open(student, TeacherSite("cpu", tmp_path))


def test_faults_in_front_of_a_real_server_change_nothing_and_lose_nothing(
    url: str, student: Loaded, local: LocalTeacher, tmp_path: Path
):
    budget, request = int(os.environ.get("SERVER_FAULTS", "40")), TeacherRequest(top_k=4)
    proxy, outcomes, seed = FaultProxy(url, 0.35), Counter[str](), 0
    proxy.late = 20.0
    with serving(proxy) as address:
        kind = settings(address, timeout=15.0, deadline=900.0, wrong_answers=50, batch=2)
        teacher = kind.open(student, TeacherSite("cpu", tmp_path))
        teacher.replicas.patience.__dict__["longest_pause"] = 0.05
        proxy.active = True
        while sum(proxy.injected.values()) < budget:
            for batch in random_batches(student, seed=seed):
                try:
                    found = ask(teacher, batch, request, 1.0)
                except HarnessError as error:
                    outcomes[f"lost: {error}"] += 1
                else:
                    right = same_scores(found, local.score(batch, request, 1.0), 1e-4)
                    outcomes["right" if right else "used silently"] += 1
            seed += 1
        teacher.close()
    assert set(outcomes) == {"right"}, outcomes


def test_the_harness_starts_a_server_for_a_run_and_ends_it(suite: Suite, library: TaskLibrary, tmp_path: Path):
    assert isinstance(suite.teacher, Scratch)
    options = ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-seqs", "16"]
    start = {
        "command": SERVE,
        "path": str(checkpoint_of(suite.teacher, 0, library)),
        "options": options,
        "environment": ON_CPU,
        "deadline": 900,
    }
    teacher = {"kind": "server", "model": "teacher", "max_logprobs": 32, "start": start, "deadline": 900}
    raw = {**wide_suite(), "stages": ["tiny_weather"], "probes": [], "adapters": {"aopd": {"options": {"top_k": 8}}}}
    mine = load_suite(str(write_yaml(tmp_path / "suite.yaml", {**raw, "teacher": teacher})))
    others = started_by(psutil.Process(), "serve")  # the server of the other tests
    path = run(RunSpec(mine, "aopd", 0, out=tmp_path / "runs"))
    assert json.loads((path / "manifest.json").read_text())["finished"]
    assert started_by(psutil.Process(), "serve") == others
