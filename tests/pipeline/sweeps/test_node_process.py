"""A process of a run over several nodes: what it leaves in the launch's folder can be read by the process that started it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.errors import StoppedError, TaskError
from harness.pipeline.sweeps.node_process import ERROR, EVENTS, SPEC
from harness.pipeline.sweeps.ray_nodes import _raise_failure  # pyright: ignore[reportPrivateUsage]
from tests.support.models import micro_suite, write_task, write_yaml


@pytest.mark.slow
def test_the_error_of_a_run_is_read_where_it_is_raised_again(tmp_path: Path):
    """The process runs as `__main__`, whose classes have no name elsewhere."""
    write_task(tmp_path / "tasks", "made_up", grader='raise ValueError("broken grader")')
    changes = {"stages": ["made_up"], "probes": [], "include": ["tasks"], "teacher": None, "adapters": {"sft": {}}}
    suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", {**micro_suite(), **changes})))
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / SPEC).write_bytes(pickle.dumps(RunSpec(suite, "sft", 0, out=tmp_path / "runs")))
    (launch / EVENTS).touch()
    command = [
        "torch.distributed.run",
        "--nproc-per-node",
        "1",
        "-m",
        "harness.pipeline.sweeps.node_process",
        str(launch),
    ]
    done = subprocess.run([sys.executable, "-m", *command], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    with pytest.raises(TaskError, match="broken grader") as raised:
        _raise_failure(launch, done.returncode)
    assert raised.value.__cause__ is None


def test_an_error_after_a_signal_says_so(tmp_path: Path):
    (tmp_path / ERROR).write_bytes(pickle.dumps((TaskError("stopped"), True)))
    with pytest.raises(TaskError) as raised:
        _raise_failure(tmp_path, 1)
    assert isinstance(raised.value.__cause__, StoppedError)
