"""A run whose stages several processes train: weights of one process, killed and continued with other numbers of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.adapter import make_adapter
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


def run_killed_at_its_first_snapshot(file: Path, out: Path) -> None:
    command = [sys.executable, "-m", "harness.cli.app", "run", str(file), "--adapter", "aopd", "--out", str(out)]
    killed = subprocess.Popen([*command, "--set", "parallel.processes=2"])
    while not list(out.rglob(SNAPSHOT)) and killed.poll() is None:
        time.sleep(0.01)
    assert killed.poll() is None, "it ended before it could be killed"
    killed.kill()
    killed.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_on_two_processes_goes_on_with_one_and_with_two(tmp_path: Path):
    raw: dict[str, Any] = {**micro_suite(), "snapshot_minutes": 0, "probes": []}
    raw["training"] |= {"steps": 6, "temperature": 0.05}
    raw["evaluation"] |= {"limit": 1, "drift": None}
    file = write_yaml(tmp_path / "micro.yaml", raw)

    def finish(out: str, processes: int) -> None:
        suite = load_suite(str(file), [f"parallel.processes={processes}"])
        assert json.loads((run(RunSpec(suite, "aopd", 0, out=tmp_path / out)) / "manifest.json").read_text())[
            "finished"
        ]

    for processes in (1, 2):
        finish(f"whole{processes}", processes)
    assert apart(tmp_path, "whole1", "whole2") <= 1e-4
    run_killed_at_its_first_snapshot(file, tmp_path / "killed2")
    shutil.copytree(tmp_path / "killed2", tmp_path / "killed1")
    for processes in (2, 1):
        out = f"killed{processes}"
        finish(out, processes)
        assert not list((tmp_path / out).rglob("shards-*"))
        assert apart(tmp_path, out, "whole2") <= (0 if processes == 2 else 1e-4)


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
