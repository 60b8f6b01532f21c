"""Stages with an adapter of their own: all methods share one training of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError, RunError
from harness.pipeline.resources import RunResources
from harness.pipeline.run import run
from harness.pipeline.shared_key import shared_key
from harness.rundir.process.progress import Event, silent
from harness.rundir.reader import find_runs
from harness.rundir.store import is_finished
from tests.support.models import micro_suite, write_yaml
from tests.support.runs import changed_suite, manifest

WARM: dict[str, Any] = {"task": "tiny_weather", "adapter": "sft", "training": {"steps": 3}}


def warm_suite(folder: Path, **changes: Any) -> Suite:
    """Return the micro suite with a first stage that SFT trains for all methods."""
    return changed_suite(folder, lambda raw: raw.update(stages=[WARM, "tiny_currency"], **changes))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Path]:
    """A suite with a fixed first stage, and a folder with its runs of OPD, SFT and the control."""
    folder = tmp_path_factory.mktemp("warm")
    suite = warm_suite(folder)
    for entry in ("opd", "sft", "none"):
        run(RunSpec(suite, entry, 0, out=folder))
    return suite, folder


def test_a_stage_with_its_own_adapter_leaves_all_methods_with_the_same_weights(warm: tuple[Suite, Path]):
    suite, folder = warm
    found = {entry: manifest(RunSpec(suite, entry, 0, out=folder).path)["weights"] for entry in ("opd", "sft", "none")}
    assert len({weights["stage_1"] for weights in found.values()}) == 1
    assert len({weights["stage_2"] for weights in found.values()}) == 3
    assert found["none"]["stage_2"] == found["none"]["stage_1"] != found["none"]["start"]


def test_methods_that_train_a_fixed_stage_apart_get_the_same_weights(warm: tuple[Suite, Path], tmp_path: Path):
    suite, folder = warm
    alone = run(RunSpec(suite, "sft", 0, out=tmp_path))
    assert manifest(alone)["weights"] == manifest(RunSpec(suite, "sft", 0, out=folder).path)["weights"]


def test_a_fixed_stage_is_trained_once(warm: tuple[Suite, Path]):
    suite, folder = warm
    logs = [RunSpec(suite, entry, 0, out=folder).path / "stage_1_tiny_weather/train" for entry in ("opd", "sft")]
    lines = [(log / "steps.jsonl").read_text() for log in logs]
    assert lines[0] == lines[1]  # with the seconds, which two trainings never share
    weights = [log / "checkpoint/model.safetensors" for log in logs]
    assert weights[0].samefile(weights[1])


def key_of(out: Path, teacher: dict[str, Any] | None, adapter: str = "opd", known: str = "") -> str:
    """Return the key of a first stage that `adapter` trains for all methods; `known` is the teacher's recorded digest."""
    stages = [{**WARM, "adapter": adapter}, "tiny_currency"]
    raw = {**micro_suite(), "stages": stages, "adapters": {"none": {}}, **({"teacher": teacher} if teacher else {})}
    spec = RunSpec(load_suite(str(write_yaml(out / "micro.yaml", raw))), "none", 0, out=out)
    resources = RunResources(spec, silent)
    resources.weights |= {"start": "digest", **({"teacher": known} if known else {})}
    return shared_key(resources, resources.spec.stages[0])


def test_where_a_teacher_is_served_trains_no_fixed_stage_again(tmp_path: Path):
    served = {"kind": "server", "model": "teacher", "urls": ["http://127.0.0.1:1"]}
    start = {"kind": "server", "model": "teacher", "start": {"path": str(tmp_path)}}
    first = key_of(tmp_path, served)
    assert key_of(tmp_path, {**served, "urls": ["http://127.0.0.1:2"], "timeout": 300, "batch": 4}) == first
    assert key_of(tmp_path, start) == first
    assert key_of(tmp_path, {**served, "model": "another"}) != first
    assert key_of(tmp_path, served, known="its digest") != first


def test_the_folder_of_a_teacher_counts_where_a_fixed_stage_uses_it(tmp_path: Path):
    teachers: list[dict[str, Any]] = []
    for name in ("first", "second"):
        (tmp_path / name / "teacher").mkdir(parents=True)
        teachers.append({"kind": "pretrained", "path": str(tmp_path / name / "teacher")})
    assert len({key_of(tmp_path, teacher) for teacher in teachers}) == 2
    assert len({key_of(tmp_path, teacher, "sft") for teacher in (*teachers, None)}) == 1


@pytest.mark.slow
def test_another_seed_or_budget_trains_its_own_fixed_stage(warm: tuple[Suite, Path], tmp_path: Path):
    suite, folder = warm
    first = manifest(RunSpec(suite, "opd", 0, out=folder).path)["weights"]
    other = run(RunSpec(suite, "opd", 1, out=folder))
    longer = warm_suite(tmp_path, name="longer").model_copy(
        update={
            "stages": tuple(
                s.model_copy(update={"training": s.training.model_copy(update={"steps": 4})}) for s in suite.stages
            )
        }
    )
    third = run(RunSpec(longer, "opd", 0, out=folder))
    assert len({first["stage_1"], manifest(other)["weights"]["stage_1"], manifest(third)["weights"]["stage_1"]}) == 3


def test_the_manifest_names_what_trained_a_fixed_stage(warm: tuple[Suite, Path]):
    suite, folder = warm
    stages = manifest(RunSpec(suite, "opd", 0, out=folder).path)["stages"]
    assert [stage.get("adapter", "") for stage in stages] == ["sft", ""]
    assert [stage["steps"] for stage in stages] == [3, 2]


def test_a_run_with_a_fixed_stage_is_finished_and_is_read(warm: tuple[Suite, Path]):
    suite, folder = warm
    assert is_finished(RunSpec(suite, "opd", 0, out=folder))
    assert [found.stages for found in find_runs([folder / "micro" / "opd" / "default" / "seed0"])] == [
        ["tiny_weather", "tiny_currency"]
    ]


def test_a_stage_takes_the_options_of_the_entry_that_it_names(tmp_path: Path):
    adapters = {"opd": {}, "gentle": {"adapter": "sft", "training": {"optimizer": {"lr": 1e-5}}}}
    stages = [{"task": "tiny_weather", "adapter": "gentle"}, "tiny_currency"]
    suite = changed_suite(tmp_path, lambda raw: raw.update(adapters=adapters, stages=stages))
    first, second = RunSpec(suite, "opd", 0).stages
    assert (first.adapter.adapter, first.training.optimizer.lr, first.own_adapter) == ("sft", 1e-5, True)
    assert (second.adapter.adapter, second.training.optimizer.lr, second.own_adapter) == ("opd", 1e-3, False)


def test_only_leading_fixed_stages_are_shared(tmp_path: Path):
    stages = [WARM, "tiny_currency", {"task": "tiny_reminder", "adapter": "sft"}]
    suite = changed_suite(tmp_path, lambda raw: raw.update(stages=stages, probes=[]))
    assert [stage.shared for stage in RunSpec(suite, "opd", 0).stages] == [True, False, False]


@pytest.mark.slow
def test_a_killed_shared_stage_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path):
    stages = [{**WARM, "training": {"steps": 100}}, "tiny_currency"]
    file = write_yaml(tmp_path / "micro.yaml", micro_suite() | {"stages": stages, "snapshot_minutes": 0})
    program = "from harness.cli.app import main; main()"
    arguments = ["run", str(file), "--adapter", "none", "--out", str(tmp_path / "killed")]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments])
    log = tmp_path / "killed/micro/none/default/seed0/stage_1_tiny_weather/train/steps.jsonl"
    while not (log.is_file() and log.read_text().count("\n") > 2) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (log.parent / "snapshot.pt").exists(), "it was killed within the stage"
    suite = load_suite(str(file))
    killed, undisturbed = (run(RunSpec(suite, "none", 0, out=tmp_path / out)) for out in ("killed", "whole"))
    assert len(manifest(killed)["sessions"]) == 2
    assert manifest(killed)["weights"] == manifest(undisturbed)["weights"]
    other = run(RunSpec(suite, "sft", 0, out=tmp_path / "killed"))
    assert manifest(other)["weights"]["stage_1"] == manifest(undisturbed)["weights"]["stage_1"]


@pytest.mark.slow
def test_another_method_continues_an_interrupted_shared_stage(warm: tuple[Suite, Path], tmp_path: Path):
    suite = warm_suite(tmp_path, snapshot_minutes=0)

    def interrupt(event: Event) -> None:
        if (event.activity, event.done) == ("stage 1 tiny_weather", 2):
            raise RunError("interrupted")

    with pytest.raises(RunError, match="interrupted"):
        run(RunSpec(suite, "opd", 0, out=tmp_path), interrupt)
    seen: list[Event] = []
    other = run(RunSpec(suite, "none", 0, out=tmp_path), seen.append)
    assert [event.done for event in seen if event.activity == "stage 1 tiny_weather"][1] > 1
    assert manifest(other)["weights"] == manifest(RunSpec(warm[0], "none", 0, out=warm[1]).path)["weights"]


@pytest.mark.parametrize(
    ("stage", "found"),
    [
        ({"task": "tiny_weather", "adapter": "sfft"}, "there is no adapter 'sfft'"),
        ({"task": "tiny_weather", "adapter": {"options": {}}}, "has no name"),
        ({"task": "tiny_weather", "adapter": {"adapter": "sft", "options": {"nonsense": 1}}}, "nonsense"),
    ],
)
def test_a_stage_that_nothing_can_train_is_refused(stage: dict[str, Any], found: str, tmp_path: Path):
    from harness.pipeline.adapter_checks import check_adapters

    with pytest.raises(ConfigError, match=found):
        check_adapters(changed_suite(tmp_path, lambda raw: raw.update(stages=[stage])))


def test_a_fixed_stage_may_need_a_teacher_that_the_methods_do_not(tmp_path: Path):
    from harness.pipeline.adapter_checks import check_adapters

    raw = {key: value for key, value in micro_suite().items() if key != "teacher"}
    raw |= {"stages": [{"task": "tiny_weather", "adapter": "opd"}], "adapters": {"sft": {}}}
    with pytest.raises(ConfigError, match="stage tiny_weather: needs a teacher"):
        check_adapters(load_suite(str(write_yaml(tmp_path / "micro.yaml", raw))))


def test_joint_training_has_no_fixed_stage(tmp_path: Path):
    with pytest.raises(ValueError, match="has an adapter of its own"):
        _ = RunSpec(warm_suite(tmp_path), "opd", 0, "joint").stages
