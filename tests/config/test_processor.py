"""`autocast: auto` is bfloat16 only where the machine has instructions for it, and a run records which it was."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config import processor
from harness.config.load import load_suite
from harness.config.models import Scratch
from harness.config.processor import cpu_has_bfloat16, has_bfloat16
from harness.errors import ConfigError
from harness.pipeline.adapter_checks import emulated_bfloat16


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    cpu_has_bfloat16.cache_clear()
    processor._gpu_capabilities.cache_clear()


@pytest.mark.parametrize(
    ("line", "able"),
    [
        ("flags\t\t: fpu sse2 fma avx avx2 avx512f avx512_bf16 vaes", True),
        ("flags\t\t: fpu sse2 avx512f amx_bf16 amx_tile", True),
        ("flags\t\t: fpu sse2 fma avx avx2", False),
        ("Features\t: fp asimd sve bf16 i8mm", True),
        ("Features\t: fp asimd", False),
        ("model name\t: avx512_bf16", False),
    ],
)
def test_a_cpu_is_read_from_its_flags(line: str, able: bool, tmp_path: Path):
    (described := tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nbugs\t\t: none\n")
    assert cpu_has_bfloat16(described) is able


def test_a_system_that_does_not_say_has_none(tmp_path: Path):
    assert not cpu_has_bfloat16(tmp_path / "missing")


@pytest.mark.parametrize(("listed", "able"), [("9.0", True), ("8.0\n8.0", True), ("9.0\n7.5", False), ("", None)])
def test_a_gpu_is_asked_for_its_capability(
    listed: str, able: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (command := tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{listed}\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    processor._gpu_capabilities.cache_clear()
    cpu = cpu_has_bfloat16()
    assert has_bfloat16("auto") is (cpu if able is None else able)
    assert has_bfloat16("cpu") is cpu
    if listed == "9.0\n7.5":
        assert has_bfloat16("cuda:0")
        assert not has_bfloat16("cuda:1")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert has_bfloat16("auto")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert not has_bfloat16("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert has_bfloat16("auto") is cpu


def test_a_driver_that_does_not_answer_is_not_guessed_about(monkeypatch: pytest.MonkeyPatch):
    def slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr(processor.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(processor.subprocess, "run", slow)
    with pytest.raises(ConfigError, match="autocast: auto"):
        has_bfloat16("auto")


@pytest.mark.parametrize("able", [True, False])
def test_auto_becomes_what_the_machine_computes_in_hardware(able: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.config.load.has_bfloat16", lambda _device: able)
    suite, expected = load_suite("tiny"), "bfloat16" if able else None
    assert {stage.training.autocast for stage in suite.stages} == {expected}
    for model in (suite.student, suite.teacher):
        assert isinstance(model, Scratch)
        assert model.warmup.autocast == expected
    dumped = suite.model_dump(mode="json")
    assert "auto" not in {stage["training"]["autocast"] for stage in dumped["stages"]}


def test_what_a_user_writes_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.config.load.has_bfloat16", lambda _device: False)
    suite = load_suite("tiny", ["training.autocast=bfloat16", "adapters.sft.training={autocast: auto}"])
    assert suite.training_for(suite.stages[0], "opd").precision == "autocast"
    assert suite.training_for(suite.stages[0], "sft").precision == "float32"


def test_a_bfloat16_that_is_only_emulated_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    def of(able: bool, *overrides: str, entry: str = "opd") -> str:
        monkeypatch.setattr("harness.pipeline.adapter_checks.has_bfloat16", lambda _device: able)
        return emulated_bfloat16(load_suite("tiny", overrides), [entry], "cpu") or ""

    monkeypatch.setattr("harness.config.load.has_bfloat16", lambda _device: False)
    narrow = ["training.precision=autocast", "teacher.warmup.autocast=bfloat16"]
    assert of(False) == ""
    assert of(True, *narrow) == ""
    assert of(False, *narrow).startswith("teacher.warmup.autocast, training.precision: bfloat16, ")
    own = "adapters.sft.training={precision: bfloat16_master}"
    assert of(False, own) == ""
    assert of(False, own, entry="sft").startswith("training.precision: ")


def test_only_a_training_or_a_warm_up_has_an_autocast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.config.load.has_bfloat16", lambda _device: True)
    suite = load_suite("tiny", ["adapters.external.options.autocast=auto"])
    assert suite.adapters["external"].options["autocast"] == "auto"
