"""Trackers: figures reach TensorBoard's own files, a broken tracker never stops a run, a missing one is refused."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.errors import ConfigError
from harness.rundir.process import trackers
from harness.rundir.process.trackers import TrackedRun, check_trackers, numbers, tracked
from tests.support.models import micro_suite, write_yaml


def test_figures_are_in_tensorboards_files(tmp_path: Path):
    warnings: list[str] = []
    config = {"training": {"lr": 1e-4, "steps": 3}, "probes": ["a", "b"], "teacher": None}
    with tracked(["tensorboard"], called(tmp_path), config, warnings.append) as log:
        for step in range(3):
            log({"entropy": 1 - 0.25 * step, "warnings": ["none"], "routed_fkl": None}, step)
        log({"eval": {"tiny_weather": 0.5}}, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("entropy")] == [(0, 1.0), (1, 0.75), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("eval/tiny_weather")] == [(3, 0.5)]
    assert warnings == []


def wait_until(written: Callable[[], bool]) -> None:
    """Wait for wandb's own process, which writes its files and may still be at it."""
    until = time.monotonic() + 60
    while not written():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_sends_every_step_to_all_trackers_at_once(tmp_path: Path):
    suite = write_yaml(tmp_path / "micro.yaml", micro_suite())
    command = ["run", str(suite), "--adapter", "aopd", "--no-report", "--track", "wandb,trackio,mlflow,tensorboard"]
    places = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run(
        [sys.executable, "-m", "harness.cli.app", *command],
        cwd=tmp_path,
        env={**os.environ, **places},
        check=True,
        timeout=900,
    )  # fmt: skip
    steps = micro_suite()["training"]["steps"] * len(micro_suite()["stages"])
    assert {path.name for path in tmp_path.iterdir()} == {"micro.yaml", "runs", "trackio"}
    folder = tmp_path / "runs" / "micro" / "aopd" / "default" / "seed0" / "trackers"
    with sqlite3.connect(folder / "mlflow.db") as found:
        assert found.execute("SELECT count(*) FROM metrics WHERE key = 'train/entropy'").fetchone() == (steps,)
        assert found.execute("SELECT count(*) FROM metrics WHERE key = 'final/average_accuracy'").fetchone() == (1,)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as found:
        rows = found.execute("SELECT CAST(metrics AS TEXT) FROM metrics").fetchall()
    assert sum("train/entropy" in row for (row,) in rows) == steps
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    wait_until(lambda: file.read_bytes().count(b"train/entropy") >= steps)


def called(folder: Path) -> TrackedRun:
    return TrackedRun("tiny", "tiny opd seed 0", "tiny/opd/default", folder)


@pytest.mark.slow
def test_mlflow_keeps_one_run_over_restarts_and_takes_names_of_profiles(tmp_path: Path):
    pytest.importorskip("mlflow")
    warnings: list[str] = []
    for step in range(3):
        with tracked(["mlflow"], called(tmp_path), {"steps": 3}, warnings.append) as log:
            log({"score": {"minimath@sampled": 0.5}}, step)
    with sqlite3.connect(tmp_path / "mlflow.db") as found:
        rows = found.execute("SELECT run_uuid, key, step FROM metrics ORDER BY step").fetchall()
        assert [(key, step) for _, key, step in rows] == [("score/minimath_sampled", step) for step in range(3)]
        assert found.execute("SELECT value FROM tags WHERE key = 'group'").fetchall() == [("tiny/opd/default",)]
    assert len({run for run, *_ in rows}) == 1
    assert warnings == []


@pytest.mark.slow
def test_wandb_groups_seeds_and_keeps_one_id_over_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    warnings: list[str] = []
    for step in range(2):
        with tracked(["wandb"], called(tmp_path), {}, warnings.append) as log:
            log({"entropy": 0.5}, step)
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{called(tmp_path).identity}.wandb"}
    wait_until(lambda: all(b"tiny/opd/default" in file.read_bytes() for file in files))
    assert warnings == []


def test_a_tracker_that_does_not_start_is_left_out_and_the_next_run_is_tracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("mlflow")
    warnings: list[str] = []
    (tmp_path / "file").touch()
    with monkeypatch.context() as unreachable:
        unreachable.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
        with tracked(["mlflow", "tensorboard"], called(tmp_path / "a"), {}, warnings.append) as log:
            log({"entropy": 1.0}, 0)
    assert len(warnings) == 1
    assert warnings[0].startswith("tracker mlflow is left out")
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    with tracked(["mlflow"], called(tmp_path / "b"), {}, warnings.append) as log:
        log({"entropy": 1.0}, 0)
    assert len(warnings) == 1


class Breaking:
    """A tracker whose server goes away at the second step."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.finished = 0

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int) -> None:
        if step:
            raise ConnectionError("no route to host")
        self.steps.append(step)

    def finish(self) -> None:
        self.finished += 1


def test_a_tracker_that_breaks_is_left_out_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken, warnings = Breaking(), list[str]()
    monkeypatch.setattr(trackers, "_made", lambda *_: broken)
    with tracked(["wandb"], called(tmp_path), {}, warnings.append) as log:
        for step in range(4):
            log({"entropy": 1.0}, step)
    assert (broken.steps, broken.finished) == ([0], 1)
    (warning,) = warnings
    assert re.match("tracker wandb .*: ConnectionError: no route to host", warning)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"trackers: mlflow .*install it"):
        check_trackers(["tensorboard", "mlflow"])


def test_numbers_are_named_by_their_place():
    nested = {"a": 1, "b": {"c": 0.5, "d": {"e": 2}}, "text": "x", "flag": True, "none": None, "list": [1], "x@y": 3}
    assert numbers(nested) == {"a": 1, "b/c": 0.5, "b/d/e": 2, "x_y": 3}
