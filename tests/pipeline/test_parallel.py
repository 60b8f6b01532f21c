"""A run whose stages several processes train: weights of one process, killed and continued with other numbers of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from harness.adapter import make_adapter
from harness.cli.app import app
from harness.config.run_spec import RunSpec
from harness.config.suite import AdapterEntry, Suite
from harness.errors import ConfigError
from harness.pipeline.resources import RunResources
from harness.rundir.files import SNAPSHOT
from harness.rundir.process.progress import silent
from tests.support.models import micro_suite, write_yaml

FOLDER = "micro/aopd/default/seed0"


def command(folder: Path, out: str, processes: int) -> list[str]:
    run = ["run", str(folder / "micro.yaml"), "--adapter", "aopd", "--out", str(folder / out)]
    return [sys.executable, "-m", "harness.cli.app", *run, "--set", f"parallel.processes={processes}"]


def weights_of(folder: Path, out: str, stage: int) -> dict[str, torch.Tensor]:
    (checkpoint,) = (folder / out / FOLDER).glob(f"stage_{stage}*/train/checkpoint/model.safetensors")
    return load_file(checkpoint)


def apart(folder: Path, one: str, other: str, stage: int = 2) -> float:
    found, expected = weights_of(folder, one, stage), weights_of(folder, other, stage)
    return max(float((value - expected[name]).abs().max()) for name, value in found.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_on_two_processes_goes_on_with_one_and_with_two(tmp_path: Path):
    suite: dict[str, Any] = {**micro_suite(), "snapshot_minutes": 0}
    suite["training"] |= {"steps": 6, "temperature": 0.05}
    write_yaml(tmp_path / "micro.yaml", suite)
    for processes in (1, 2):
        subprocess.run(command(tmp_path, f"whole{processes}", processes), check=True)
    assert apart(tmp_path, "whole1", "whole2") <= 1e-4
    for processes in (2, 1):
        out = f"killed{processes}"
        killed = subprocess.Popen(command(tmp_path, out, 2))
        while not list((tmp_path / out).rglob(SNAPSHOT)) and killed.poll() is None:
            time.sleep(0.01)
        assert killed.poll() is None, "it ended before it could be killed"
        killed.kill()
        killed.wait()
        subprocess.run(command(tmp_path, out, processes), check=True)
        manifest = json.loads((tmp_path / out / FOLDER / "manifest.json").read_text())
        assert manifest["finished"]
        assert not list((tmp_path / out).rglob("shards-*"))
        assert apart(tmp_path, out, "whole2") <= (0 if processes == 2 else 1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_trains_a_run_as_its_processes_do_and_the_same_command_continues_it(tmp_path: Path):
    suite: dict[str, Any] = {**micro_suite(), "snapshot_minutes": 0}
    suite["training"] |= {"steps": 4, "temperature": 0.05}
    write_yaml(tmp_path / "micro.yaml", suite)
    subprocess.run(command(tmp_path, "whole", 2), check=True)
    launched = ["run", str(tmp_path / "micro.yaml"), "--adapter", "aopd", "--out", str(tmp_path / "launched")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    killed = subprocess.Popen([*torchrun, "-m", "harness.cli.app", *launched])
    while not list((tmp_path / "launched").rglob(SNAPSHOT)) and killed.poll() is None:
        time.sleep(0.01)
    killed.terminate()
    assert killed.wait(timeout=120) != 0
    subprocess.run([*torchrun, "-m", "harness.cli.app", *launched], check=True, timeout=300)
    assert json.loads((tmp_path / "launched" / FOLDER / "manifest.json").read_text())["finished"]
    assert apart(tmp_path, "launched", "whole") == 0


@pytest.mark.parametrize("several", ["sweep", "study"])
def test_a_command_of_many_runs_is_refused_under_torchrun(several: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, [several, "tiny"])
    assert isinstance(result.exception, ConfigError)
    assert "harness run" in str(result.exception)


@pytest.mark.parametrize("kind", ["trl", "external"])
def test_a_method_with_a_trainer_of_its_own_is_refused(kind: str, tmp_path: Path):
    raw = {**micro_suite(), "parallel": {"processes": 2}, "adapters": {kind: {"options": {}}}}
    if kind == "external":
        raw["adapters"][kind]["options"] = {"command": ["true", "{output}"]}
    assert not make_adapter(kind, AdapterEntry(options=raw["adapters"][kind]["options"])).capabilities.distributes
    raw["stages"] = [{"task": task, "training": raw["training"]} for task in raw["stages"]]
    resources = RunResources(RunSpec(Suite.model_validate(raw), kind, 0, out=tmp_path), silent)
    with pytest.raises(ConfigError, match="one process"):
        resources.check()


def test_the_number_of_processes_is_no_part_of_a_runs_identity(micro: Suite, tmp_path: Path):
    several = Suite.model_validate({**micro.model_dump(), "parallel": {"processes": 2}})
    assert RunSpec(several, "opd", 0, out=tmp_path).config_hash == RunSpec(micro, "opd", 0, out=tmp_path).config_hash
