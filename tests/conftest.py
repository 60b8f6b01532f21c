"""Fixtures of all tests: no network, one thread, a temporary cache, and the micro runs that several files read."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: its kernels then run on a CPU

from lm_eval.api.task import ConfigurableTask

from harness.config.load import load_suite
from harness.config.models import Scratch
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.engines.engine import Completion, Sampling
from harness.lm import optimiser
from harness.lmeval.library import TaskLibrary
from harness.pipeline.run import run
from tests.support.models import micro_suite, write_yaml
from tests.support.stages import Recorder

# A busy machine is not a failure: no deadline and no complaint that examples are slow to make. Where CI judges a change,
# the examples are the same each time; elsewhere they are new ones.
settings.register_profile(
    "shared machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=50,
    derandomize="CI" in os.environ,
)
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Keep built models in a folder of this session, and torch on one thread."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def real_fsync() -> Generator[Callable[[int], None]]:
    """Let no write of the tests' own processes wait for the disk; return what waits, for tests that cut the power."""
    real = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield real


@pytest.fixture(scope="session", autouse=True)
def generated_once() -> Generator[None]:
    """Generate the items of a tiny task once in a process, where hundreds of runs load them."""
    real, made = ConfigurableTask.download, dict[str, Any]()
    real_shots, shots = ConfigurableTask.fewshot_docs, dict[str, list[Any]]()

    def download(self: ConfigurableTask, *arguments: Any, **named: Any) -> None:
        generator, settings = self.config.custom_dataset, (self.config.metadata, self.config.dataset_kwargs)
        file = getattr(getattr(generator, "__code__", None), "co_filename", "")
        if not file.endswith(("tasks/math/arithmetic.py", "tasks/tools/requests.py")):
            real(self, *arguments, **named)
            return
        key = f"{file} {settings}"
        if key not in made:
            real(self, *arguments, **named)
            made[key] = self.dataset
        self.dataset = made[key]

    def fewshot_docs(self: ConfigurableTask) -> Any:
        """Return a task's examples; lm-eval lists all of them for every task that it loads, also where it shows none."""
        if not any(self.dataset is each for each in made.values()):
            return real_shots(self)
        asked, splits = self.config, (self.config.training_split, self.config.validation_split, self.config.test_split)
        key = f"{id(self.dataset)} {splits} {asked.fewshot_split} {asked.fewshot_config} {asked.process_docs}"
        if key not in shots:
            shots[key] = list(real_shots(self))
        return shots[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigurableTask, "download", download)
        patch.setattr(ConfigurableTask, "fewshot_docs", fewshot_docs)
        yield


@pytest.fixture(scope="session")
def library() -> TaskLibrary:
    """The shipped tasks."""
    return TaskLibrary()


@pytest.fixture(scope="session")
def micro_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro suite's file."""
    return write_yaml(tmp_path_factory.mktemp("suite") / "micro.yaml", micro_suite())


@pytest.fixture(scope="session")
def micro(micro_file: Path) -> Suite:
    """The micro suite."""
    return load_suite(str(micro_file))


@pytest.fixture(scope="session")
def student_folder(micro: Suite, library: TaskLibrary) -> Path:
    """A micro student's checkpoint, warmed up so that it answers in the right shape."""
    from harness.pipeline.build.model_source import checkpoint_of

    return checkpoint_of(micro.student, 0, library)


@pytest.fixture(scope="session")
def teacher_folder(micro: Suite, library: TaskLibrary) -> Path:
    """A micro teacher's checkpoint: the student's tokenizer, other weights."""
    from harness.pipeline.build.model_source import checkpoint_of

    assert isinstance(micro.teacher, Scratch)
    return checkpoint_of(micro.teacher, 0, library)


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this session's undisturbed runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def aopd(micro: Suite, out: Path) -> Path:
    """An undisturbed run of AOPD."""
    return run(RunSpec(micro, "aopd", 0, out=out))


@pytest.fixture(scope="session")
def opd(micro: Suite, out: Path, aopd: Path) -> Path:
    """An undisturbed run of OPD from the same start."""
    return run(RunSpec(micro, "opd", 0, out=out))


@pytest.fixture(scope="session")
def control(micro: Suite, out: Path) -> Path:
    """A run that updates nothing."""
    return run(RunSpec(micro, "none", 0, out=out))


@pytest.fixture(name="blank_figures")
def _blank_figures() -> Generator[None]:
    """Save blank figures in this test."""
    from tests.support.reports.drawn_figures import blank_figures

    with blank_figures():
        yield


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """Replace the loop's optimiser by the recorder."""
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(Recorder, "rate", 0.0)
    monkeypatch.setattr(optimiser, "Updater", Recorder)
    return Recorder


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the prompts of each call of the engine."""
    from harness.evaluation import hf_model

    counted: list[int] = []
    original = hf_model.HFEngine.generate

    def spy(self: Any, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        counted.append(len(prompts))
        return original(self, prompts, sampling)

    monkeypatch.setattr(hf_model.HFEngine, "generate", spy)
    return counted
