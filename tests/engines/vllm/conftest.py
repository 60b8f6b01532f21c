"""One engine for all tests of a file, and checkpoints for it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from harness.config.load import load_suite
from harness.config.suite import Suite
from harness.engines.vllm import VLLMEngine
from harness.lm.checkpoints import Loaded, load_checkpoint, save_checkpoint
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from tests.support.models import write_yaml
from tests.support.servers.vllm import start, wide_suite


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return load_suite(str(write_yaml(tmp_path_factory.mktemp("suite") / "wide.yaml", wide_suite())))


@pytest.fixture(scope="module")
def student_folder(micro: Suite, library: TaskLibrary) -> Path:
    return checkpoint_of(micro.student, 0, library)


@pytest.fixture(scope="module")
def engine(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[VLLMEngine]:
    """One engine for all tests that leave it alive, as for all stages of a run."""
    started = start(student_folder, tmp_path_factory.mktemp("vllm") / "vllm.txt")
    yield started
    started.close()


@pytest.fixture
def student(student_folder: Path, micro: Suite) -> Loaded:
    return load_checkpoint(student_folder, micro.student, "cpu")


@pytest.fixture
def changed(student: Loaded, tmp_path: Path) -> Path:
    """A second checkpoint of the same architecture, with weights far from the first."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    save_checkpoint(student, tmp_path / "changed")
    return tmp_path / "changed"
