"""Trackers: figures reach TensorBoard's own files, a broken tracker never stops a run, a missing one is refused."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.errors import ConfigError
from harness.rundir.process import trackers
from harness.rundir.process.trackers import check_trackers, numbers, tracked
from tests.support.models import micro_suite, write_yaml


def test_figures_are_in_tensorboards_files(tmp_path: Path):
    warnings: list[str] = []
    config = {"training": {"lr": 1e-4, "steps": 3}, "probes": ["a", "b"], "teacher": None}
    with tracked(["tensorboard"], "tiny", "opd seed 0", tmp_path, config, warnings.append) as log:
        for step in range(3):
            log({"entropy": 1 - 0.25 * step, "warnings": ["none"], "routed_fkl": None}, step)
        log({"eval": {"tiny_weather": 0.5}}, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("entropy")] == [(0, 1.0), (1, 0.75), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("eval/tiny_weather")] == [(3, 0.5)]
    assert warnings == []


@pytest.mark.slow
def test_a_run_sends_every_step_to_all_trackers_at_once(tmp_path: Path):
    suite = write_yaml(tmp_path / "micro.yaml", micro_suite())
    command = ["run", str(suite), "--adapter", "aopd", "--track", "wandb,trackio,mlflow,tensorboard"]
    places = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run(
        [sys.executable, "-m", "harness.cli.app", *command],
        cwd=tmp_path,
        env={**os.environ, **places},
        check=True,
        timeout=240,
    )  # fmt: skip
    steps = micro_suite()["training"]["steps"] * len(micro_suite()["stages"])
    with sqlite3.connect(tmp_path / "mlflow.db") as found:
        assert found.execute("SELECT count(*) FROM metrics WHERE key = 'train/entropy'").fetchone() == (steps,)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as found:
        rows = found.execute("SELECT CAST(metrics AS TEXT) FROM metrics").fetchall()
    assert sum("train/entropy" in row for (row,) in rows) == steps
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.read_bytes().count(b"train/entropy") >= steps


class Breaking:
    """A tracker whose server goes away at the second step."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int) -> None:
        if step:
            raise ConnectionError("no route to host")
        self.steps.append(step)

    def finish(self) -> None:
        raise AssertionError("a tracker that was left out is not asked again")


def test_a_tracker_that_breaks_is_left_out_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken, warnings = Breaking(), list[str]()
    monkeypatch.setattr(trackers, "_start", lambda *_: broken)
    with tracked(["wandb"], "tiny", "opd seed 0", tmp_path, {}, warnings.append) as log:
        for step in range(4):
            log({"entropy": 1.0}, step)
    assert broken.steps == [0]
    assert warnings == ["tracker wandb is left out from here on: ConnectionError: no route to host"]


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match="trackers: mlflow is not installed; install it"):
        check_trackers(["tensorboard", "mlflow"])


def test_numbers_are_named_by_their_place():
    nested = {"a": 1, "b": {"c": 0.5, "d": {"e": 2}}, "text": "x", "flag": True, "none": None, "list": [1]}
    assert numbers(nested) == {"a": 1, "b/c": 0.5, "b/d/e": 2}
