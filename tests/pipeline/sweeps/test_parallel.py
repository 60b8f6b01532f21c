"""A run whose stages several processes train: weights of one process, killed and continued with other numbers of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from harness.adapter import make_adapter
from harness.cli.app import app
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import AdapterEntry, Suite
from harness.errors import ConfigError
from harness.pipeline.resources import RunResources
from harness.pipeline.run import run
from harness.rundir.files import SNAPSHOT
from harness.rundir.process.progress import silent
from tests.support.models import micro_suite, write_yaml

FOLDER = "micro/aopd/default/seed0"


def weights_of(folder: Path, out: str, stage: int) -> dict[str, torch.Tensor]:
    (checkpoint,) = (folder / out / FOLDER).glob(f"stage_{stage}*/train/checkpoint/model.safetensors")
    return load_file(checkpoint)


def apart(folder: Path, one: str, other: str, stage: int = 2) -> float:
    found, expected = weights_of(folder, one, stage), weights_of(folder, other, stage)
    return max(float((value - expected[name]).abs().max()) for name, value in found.items())


def finish(folder: Path, out: str, processes: int) -> None:
    suite = load_suite(str(folder / "micro.yaml"), [f"parallel.processes={processes}"])
    assert is_finished_at(run(RunSpec(suite, "aopd", 0, out=folder / out)))


def is_finished_at(path: Path) -> bool:
    return bool(json.loads((path / "manifest.json").read_text())["finished"])


def command(folder: Path, out: str) -> list[str]:
    return ["run", str(folder / "micro.yaml"), "--adapter", "aopd", "--out", str(folder / out), "--no-report"]


def start_until_a_snapshot(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    snapshot = out / FOLDER / "stage_1_tiny_weather/train" / SNAPSHOT
    try:
        while not snapshot.exists() and process.poll() is None:
            time.sleep(0.01)
    except BaseException:
        process.terminate()  # the time is up, and what it started must not outlive the test
        raise
    assert process.poll() is None, "it ended before it could be killed"
    return process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose evaluations are short, and its run over one and over two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    raw: dict[str, Any] = {**micro_suite(), "snapshot_minutes": 0, "probes": []}
    raw["training"] |= {"steps": 6, "temperature": 0.05}
    raw["evaluation"] |= {"limit": 1, "drift": None}
    write_yaml(folder / "micro.yaml", raw)
    for processes in (1, 2):
        finish(folder, f"whole{processes}", processes)
    return folder


@pytest.mark.slow
def test_a_run_killed_on_two_processes_goes_on_with_one_and_with_two(folder: Path):
    assert apart(folder, "whole1", "whole2") <= 1e-4
    several = [*command(folder, "killed2"), "--set", "parallel.processes=2"]
    killed = start_until_a_snapshot(folder / "killed2", "harness.cli.app", *several)
    others = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    # The other process ends when it misses the first; until then it may write its part of a snapshot.
    psutil.wait_procs(others, timeout=300)
    shutil.copytree(folder / "killed2", folder / "killed1")
    for processes in (2, 1):
        out = f"killed{processes}"
        finish(folder, out, processes)
        assert not list((folder / out).rglob("shards-*"))
        assert apart(folder, out, "whole2") <= (0 if processes == 2 else 1e-4)


@pytest.mark.slow
def test_torchrun_trains_a_run_as_its_processes_do_and_the_same_command_continues_it(folder: Path):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harness.cli.app"]
    launched = [*torchrun, *command(folder, "launched")]
    killed = start_until_a_snapshot(folder / "launched", *launched)
    killed.terminate()
    assert killed.wait(timeout=300) != 0
    subprocess.run([sys.executable, "-m", *launched], check=True, timeout=900)
    assert is_finished_at(folder / "launched" / FOLDER)
    assert apart(folder, "launched", "whole2") == 0


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


def test_the_number_of_processes_is_not_part_of_a_runs_identity(micro: Suite, tmp_path: Path):
    several = Suite.model_validate({**micro.model_dump(), "parallel": {"processes": 2}})
    assert RunSpec(several, "opd", 0, out=tmp_path).config_hash == RunSpec(micro, "opd", 0, out=tmp_path).config_hash
