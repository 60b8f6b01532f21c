"""A run whose stages are evaluated by another process, or come from a store, equals the run of one machine to the bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Checkpoints
from harness.errors import InUseError, RunError
from harness.pipeline.background_evaluation import evaluate_in_background
from harness.pipeline.run import run
from harness.pipeline.sweeps.sweep import sweep
from harness.rundir.process.progress import Event, silent
from harness.rundir.shared.lease import Lease
from harness.rundir.shared.listed_folders import put_file
from harness.rundir.shared.remote_stages import is_done
from tests.support import equal_runs
from tests.support.models import micro_suite, write_yaml
from tests.support.runs import cells, manifest

pytestmark = pytest.mark.slow

KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.pipeline.run import run

suite, out, snapshots, stage = sys.argv[1:]

def is_stored():
    for file in Path(snapshots).glob("00000002-*.json"):
        try:
            return bool(json.loads(file.read_text()))
        except ValueError:  # not written to its end
            return False
    return False

def report(event):
    if event.activity == stage and event.done == 3:
        while not is_stored():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    run(RunSpec(load_suite(suite), "opd", 0, out=Path(out)), report)
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """A short run of two stages, done on one machine."""
    folder = tmp_path_factory.mktemp("elsewhere")
    raw = {**micro_suite(), "probes": []}
    raw["training"] |= {"steps": 2}
    raw["evaluation"] |= {"limit": 2}
    spec = RunSpec(load_suite(str(write_yaml(folder / "micro.yaml", raw))), "opd", 0, out=folder / "whole")
    run(spec)
    return spec


def evaluations(done: Callable[[Callable[[Event], None]], object]) -> list[str]:
    events: list[Event] = []
    done(events.append)
    return [event.activity for event in events if event.activity.startswith("evaluate after") and event.done == 0]


def test_what_another_process_evaluates_is_not_evaluated_again(spec: RunSpec, tmp_path: Path):
    there: list[str] = []

    def begin(spec: RunSpec, stage: int) -> bool:
        there.extend(evaluations(lambda report: evaluate_in_background(spec, stage, report)))
        return True

    mine = replace(spec, out=tmp_path)
    here = evaluations(lambda report: run(mine, report, begin))
    first, second = (f"evaluate after {stage.name}" for stage in spec.stages)
    assert set(there) == {first}
    assert set(here) == {second}
    assert cells(mine.path) == cells(spec.path)
    assert manifest(mine.path)["weights"] == manifest(spec.path)["weights"]


def test_what_another_process_leaves_the_run_does(spec: RunSpec, tmp_path: Path):
    mine = replace(spec, out=tmp_path)
    run(mine, silent, lambda *_: True)
    assert cells(mine.path) == cells(spec.path)


def test_a_machine_that_lacks_a_finished_stage_takes_it_from_the_store(spec: RunSpec, tmp_path: Path):
    stored = replace(spec, suite=spec.suite.model_copy(update={"storage": f"file://{tmp_path}/bucket"}))
    first, second = (replace(stored, out=tmp_path / name) for name in ("first", "second"))

    def lost(event: Event) -> None:
        if event.activity.startswith("stage 2"):
            raise RunError("the machine is gone")

    with pytest.raises(RunError, match="gone"):
        run(first, lost)
    shutil.rmtree(tmp_path / "first")
    trained: list[str] = []
    run(second, lambda event: trained.append(event.activity))
    assert not any(activity.startswith("stage 1") for activity in trained)
    assert cells(second.path) == cells(spec.path)
    assert manifest(second.path)["weights"] == manifest(spec.path)["weights"]
    assert len(manifest(second.path)["sessions"]) == 2
    third = replace(stored, out=tmp_path / "third")
    again: list[Event] = []
    run(third, again.append)
    assert not again, "a finished run is fetched, and nothing is done"
    assert cells(third.path) == cells(spec.path)


def test_a_machine_lost_during_an_upload_leaves_the_checkpoint_before_in_the_store(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stores = {"storage": f"file://{tmp_path}/bucket", "checkpoints": Checkpoints(keep="last")}
    stored = replace(spec, suite=spec.suite.model_copy(update=stores))
    first, second = (replace(stored, out=tmp_path / name) for name in ("first", "second"))

    def put_until_lost(system: Any, file: Path, target: str) -> None:
        if "/stage_2_" in target:
            raise OSError("the machine is gone")
        put_file(system, file, target)

    with monkeypatch.context() as patched:
        patched.setattr("harness.rundir.shared.listed_folders.put_file", put_until_lost)
        with pytest.raises(RunError, match="gone"):
            run(first)
    shutil.rmtree(tmp_path / "first")
    run(second)
    assert cells(second.path) == cells(spec.path)
    assert manifest(second.path)["weights"] == manifest(spec.path)["weights"]


@pytest.mark.parametrize(("processes", "stages"), [(1, 2), (2, 1)])
def test_a_machine_lost_within_a_stage_costs_the_steps_after_the_last_snapshot_in_the_store(
    processes: int, stages: int, tmp_path: Path
):
    raw = {**micro_suite(), "probes": [], "snapshot_minutes": 0, "parallel": {"processes": processes}}
    raw["stages"] = raw["stages"][:stages]
    raw["training"] |= {"steps": 4}
    raw["evaluation"] |= {"limit": 2, "every": 2, "curve_items": 2}
    undisturbed = RunSpec(
        load_suite(str(write_yaml(tmp_path / "micro.yaml", raw))), "opd", 0, out=tmp_path / "undisturbed"
    )
    run(undisturbed)
    suite = write_yaml(tmp_path / "stored.yaml", raw | {"storage": f"file://{tmp_path}/bucket"})
    spec = RunSpec(load_suite(str(suite)), "opd", 0, out=tmp_path / "second")
    place = tmp_path / "bucket" / spec.path.relative_to(spec.out)
    last = spec.stages[-1]
    snapshots, activity = place / "snapshots" / f"stage_{last.index}_{last.name}", f"stage {last.index} {last.name}"
    (tmp_path / "killed.py").write_text(KILLED)
    command = [
        sys.executable,
        str(tmp_path / "killed.py"),
        str(suite),
        str(tmp_path / "first"),
        str(snapshots),
        activity,
    ]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr[-2000:]
    shutil.rmtree(tmp_path / "first")
    seen: list[Event] = []
    run(spec, seen.append)
    assert [e.done for e in seen if e.activity == activity] == [0, 3, 4]
    others = ("evaluate start", *(f"stage {stage.index} " for stage in spec.stages[:-1]))
    assert not any(event.activity.startswith(others) for event in seen), "what was finished comes from the store"
    assert equal_runs.main(spec.path, undisturbed.path) == 0
    assert equal_runs.files_of(spec.path) == equal_runs.files_of(undisturbed.path)
    assert cells(spec.path) == cells(undisturbed.path)
    assert manifest(spec.path)["weights"] == manifest(undisturbed.path)["weights"]
    assert not snapshots.exists(), "the store has the finished stage"
    assert len(manifest(spec.path)["sessions"]) == 2


def test_a_run_that_another_machine_does_is_refused_until_its_lease_ends(spec: RunSpec, tmp_path: Path):
    url = f"file://{tmp_path}/bucket"
    mine = replace(spec, suite=spec.suite.model_copy(update={"storage": url}), out=tmp_path / "mine")
    place = f"{url}/{mine.path.relative_to(mine.out)}"
    system, root = fsspec.core.url_to_fs(place)
    with Lease(system, root, place, renewal=0.2, machine="elsewhere").held(lambda _: None):
        with pytest.raises(InUseError, match="does this run"):
            run(mine)
        assert not (mine.path / "manifest.json").exists()
    run(mine)
    assert cells(mine.path) == cells(spec.path)


def test_two_commands_that_share_a_store_alone_do_a_run_once(tmp_path: Path):
    raw = {**micro_suite(), "probes": [], "storage": f"file://{tmp_path}/bucket"}
    raw["training"] |= {"steps": 2}
    raw["evaluation"] |= {"limit": 2}
    suite = write_yaml(tmp_path / "micro.yaml", raw)
    command = [sys.executable, "-m", "harness.cli.app", "run", str(suite), "--adapter", "opd", "--no-report"]
    started = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / name)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name in ("first", "second")
    ]
    said = [process.communicate()[0] for process in started]
    assert all("does this run" in text for process, text in zip(started, said, strict=True) if process.returncode), said
    written = {file.read_text() for file in tmp_path.glob("*/*/opd/*/seed0/manifest.json")}
    assert len(written) == 1, "the run that was done, in its folder, in the store, and where it was fetched"


def test_the_stores_last_copy_is_made_again_where_it_failed(spec: RunSpec, tmp_path: Path):
    url = f"file://{tmp_path}/bucket"
    stored = replace(spec, suite=spec.suite.model_copy(update={"storage": url}), out=tmp_path / "mine")
    run(stored)
    copy = tmp_path / "bucket" / stored.path.relative_to(stored.out) / "manifest.json"
    whole = copy.read_text()
    copy.write_text(json.dumps({**json.loads(whole), "finished": None}))
    assert not is_done(stored)
    sweep([stored], 1, silent)
    assert copy.read_text() == whole
    assert is_done(stored)
