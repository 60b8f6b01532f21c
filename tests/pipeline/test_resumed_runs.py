"""A killed run repeats no finished work and ends with the numbers of an undisturbed run, however often it is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import RunError
from harness.pipeline.finished_runs import left_to_do
from harness.pipeline.run import run
from harness.rundir.files import write_sealed
from harness.rundir.store import is_finished, read_manifest
from tests.support.models import TASK_FILE, write_task
from tests.support.runs import FOLDERS, StoppedError, cells, changed_suite, manifest, samples, steps, stop_at

KILLED = """
import os, signal, sys
from pathlib import Path
from harness.pipeline.run import run
from harness.config.run_spec import RunSpec
from harness.config.load import load_suite

suite, out, *points = sys.argv[1:]
for point in [*points, "never"]:
    child = os.fork()
    if child == 0:
        def report(event):
            if f"{event.activity} {event.done}" == point:
                os.kill(os.getpid(), signal.SIGKILL)
        run(RunSpec(load_suite(suite), "aopd", 0, out=Path(out)), report)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(point, "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


POINTS = (
    "build weak warm-up 30",  # while the student is made
    "evaluate start 2",  # while the start is evaluated
    "stage 1 tiny_weather 1",  # within a stage
    "stage 1 tiny_weather 1",  # at the same place again
    "evaluate after tiny_weather 0",  # between training and evaluation
    "stage 2 tiny_currency 0",  # between two stages
    "stage 2 tiny_currency 2",  # after the last step, before the checkpoint
    "evaluate after tiny_currency 3",  # before the last cells are written
)


@pytest.fixture(scope="session")
def resumed(micro_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed by SIGKILL at all these points and continued each time."""
    out = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "HARNESS_CACHE": str(out / "cache")}
    command = [sys.executable, "-c", KILLED, str(micro_file), str(out), *POINTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [*(f"{point} killed" for point in POINTS), "never 0"], done.stderr[-3000:]
    return out / "micro" / "aopd" / "default" / "seed0"


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_one(resumed: Path, aopd: Path):
    assert manifest(resumed)["weights"] == manifest(aopd)["weights"]


@pytest.mark.slow
def test_a_killed_run_has_the_step_log_and_the_results_of_an_undisturbed_one(resumed: Path, aopd: Path):
    assert steps(resumed) == steps(aopd)
    assert cells(resumed) == cells(aopd)
    pd.testing.assert_frame_equal(samples(resumed), samples(aopd))


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_made(resumed: Path):
    left = [path.name for path in resumed.rglob(".*") if path.name != ".lock"]
    assert left == []
    assert manifest(resumed)["finished"]


def test_an_interrupted_run_is_not_finished_and_goes_on_where_it_stopped(micro: Suite, aopd: Path, tmp_path: Path):
    spec = RunSpec(micro, "aopd", 0, out=tmp_path)
    with pytest.raises(StoppedError):
        run(spec, stop_at("stage 2 tiny_currency 1"))
    assert not is_finished(spec)
    trained = spec.path / FOLDERS[1] / "train" / "done.json"
    before = trained.stat().st_mtime_ns
    run(spec)
    assert trained.stat().st_mtime_ns == before
    assert manifest(spec.path)["weights"] == manifest(aopd)["weights"]
    assert steps(spec.path) == steps(aopd)
    assert cells(spec.path) == cells(aopd)


@pytest.mark.slow
def test_a_run_interrupted_after_its_last_training_still_names_all_weights(micro: Suite, aopd: Path, tmp_path: Path):
    spec = RunSpec(micro, "aopd", 0, out=tmp_path)
    with pytest.raises(StoppedError):
        run(spec, stop_at("evaluate after tiny_currency 0"))
    run(spec)
    assert manifest(spec.path)["weights"] == manifest(aopd)["weights"]


def test_a_finished_run_of_another_model_whose_folder_has_the_same_name_is_not_taken(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
):
    folders = {name: tmp_path / name / "hf" for name in ("student", "copy", "teacher")}
    for name, source in zip(folders, (student_folder, student_folder, teacher_folder), strict=True):
        shutil.copytree(source, folders[name])

    def spec_of(student: str, teacher: str) -> RunSpec:
        models = {
            key: {"kind": "pretrained", "path": str(folders[name]), "chat": {"template": "chatml"}}
            for key, name in (("student", student), ("teacher", teacher))
        }
        return RunSpec(changed_suite(tmp_path, lambda raw: raw.update(models)), "opd", 0, out=tmp_path / "runs")

    path = run(spec_of("student", "teacher"))
    assert left_to_do([spec_of("copy", "teacher")]) == []
    for other, named in ((spec_of("teacher", "teacher"), "student.path"), (spec_of("student", "copy"), "teacher.path")):
        with pytest.raises(RunError, match=named):
            left_to_do([other])
        with pytest.raises(RunError, match=named):
            run(other)
    shutil.rmtree(folders["copy"])
    assert run(spec_of("student", "teacher")) == path


EDITS: dict[str, dict[str, Any]] = {
    "prompts": {"doc_to_text": "please {{prompt}}"},
    "decoding": {"generation_kwargs": {**TASK_FILE["generation_kwargs"], "max_gen_toks": 7}},
    "targets": {"metadata": {"version": 1.0, "harness": {"metric": "strict", "training_target": "prompt"}}},
    "grader": {"grader": 'return {"strict": 0.5, "parsed": 1.0}'},
}


def test_an_edited_task_file_ends_a_run_that_goes_on_unless_an_earlier_version_began_it(
    student_folder: Path, tmp_path: Path
):
    student = {"kind": "pretrained", "path": str(student_folder), "chat": {"template": "chatml"}}

    def change(raw: dict[str, Any]) -> None:
        raw.update(student=student, stages=["made_up"], probes=[], include=["tasks"])
        raw["evaluation"]["decoding"] = {}

    write_task(tmp_path / "tasks")
    spec = RunSpec(changed_suite(tmp_path, change), "sft", 0, out=tmp_path / "runs")
    with pytest.raises(StoppedError):
        run(spec, stop_at("stage 1 made_up 1"))
    for edit in EDITS.values():
        write_task(tmp_path / "tasks", **edit)
        with pytest.raises(RunError, match="made_up"):
            run(spec)
    found = read_manifest(spec.path)
    assert found is not None
    write_sealed(spec.path / "manifest.json", found.model_copy(update={"inputs": {"start": found.inputs["start"]}}))
    assert run(spec) == spec.path
