"""`autocast: auto` is bfloat16 only where the machine has instructions for it, and a run records which it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config import processor
from harness.config.load import load_suite
from harness.config.models import Scratch
from harness.config.processor import cpu_has_bfloat16, emulated_bfloat16, has_bfloat16


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
    monkeypatch.setattr(processor, "has_bfloat16", lambda _device: False)
    assert emulated_bfloat16("cpu", ["float32"]) is None
    assert "training.precision is autocast" in (emulated_bfloat16("cpu", ["float32", "autocast"]) or "")
    monkeypatch.setattr(processor, "has_bfloat16", lambda _device: True)
    assert emulated_bfloat16("cpu", ["autocast"]) is None
