"""What another machine has or lacks: GPUs without kernels, folders of other users, no home, another answer to `auto`."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.errors import ConfigError, ModelError, RunError
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.scratch import cache_folder, ensure_built
from harness.pipeline.processes.devices import usable_processors, working_device
from harness.pipeline.processes.rank_processes import loopback
from harness.rundir.files import sync
from harness.rundir.store import RunStore
from tests.support.models import micro_suite, write_yaml
from tests.support.reports.run_factory import write_finished
from tests.support.reports.study_factory import constant


@pytest.mark.parametrize(
    ("capability", "built", "usable"),
    [
        ((9, 0), ["sm_80", "sm_90a", "compute_100"], True),
        ((8, 6), ["sm_75", "sm_80", "sm_90"], True),
        ((12, 0), ["sm_90", "compute_90"], True),  # the driver compiles PTX for later GPUs
        ((7, 0), ["sm_75", "sm_80", "compute_90"], False),
        ((7, 0), ["gfx90a"], True),  # an AMD GPU
    ],
)
def test_a_gpu_without_kernels_is_refused_in_a_sentence(
    capability: tuple[int, int], built: list[str], usable: bool, monkeypatch: pytest.MonkeyPatch
):
    answers: dict[str, Any] = {
        "is_available": True, "get_device_capability": capability, "get_arch_list": built, "get_device_name": "Tesla V100",
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    if usable:
        assert working_device("auto") == "cuda"
    else:
        with pytest.raises(ModelError, match=r"Tesla V100 .*7\.0.*sm_75.*device=cpu"):
            working_device("auto")


def test_processors_are_those_that_this_process_may_use():
    assert 1 <= usable_processors() <= (os.cpu_count() or 1)


def test_the_interface_to_this_machine_itself_is_found():
    import psutil

    assert any(each.address == "127.0.0.1" for each in psutil.net_if_addrs()[loopback()])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL])
def test_a_folder_that_cannot_be_flushed_is_left_alone_and_a_file_is_not(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (file := tmp_path / "file").touch()

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(file)


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HARNESS_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="set HARNESS_CACHE"):
        cache_folder()


@pytest.mark.slow
def test_a_shared_cache_is_read_without_its_lock_and_its_models_are_open_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", micro_suite())))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    spec: Any = suite.student
    built = ensure_built(spec, 0, TaskLibrary(), lambda *_: None)
    assert built.stat().st_mode & 0o777 == 0o755
    monkeypatch.setattr("harness.pipeline.build.scratch.waiting_lock", lambda _: pytest.fail("the lock was taken"))
    assert ensure_built(spec, 0, TaskLibrary(), lambda *_: None) == built


def test_a_run_of_a_machine_with_bfloat16_says_how_it_continues_elsewhere(tmp_path: Path):
    here = RunSpec(load_suite("tiny", ["training.autocast=null"]), "opd", 0, out=tmp_path)
    narrow = ["training.autocast=bfloat16", "student.warmup.autocast=bfloat16", "teacher.warmup.autocast=bfloat16"]
    there = RunSpec(load_suite("tiny", narrow), "opd", 0, out=tmp_path)
    write_finished(there, constant(there, 0.6, 0.3))
    store = RunStore(there.path)
    found = store.manifest
    assert found is not None
    store.refuse_another(found)
    other = RunSpec(load_suite("tiny", ["training.autocast=null"]), "opd", 0, out=tmp_path / "elsewhere")
    write_finished(other, constant(here, 0.6, 0.3))
    mine = RunStore(other.path).manifest
    assert mine is not None
    with pytest.raises(RunError) as caught:
        store.refuse_another(mine)
    settings = [part for part in str(caught.value).split() if "autocast=" in part]
    continued = RunSpec(load_suite("tiny", [each.rstrip(",") for each in settings]), "opd", 0, out=tmp_path)
    assert continued.config() == there.config()
