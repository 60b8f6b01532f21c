"""Branches: stages with an adapter of their own, runs from another run's stage, named starts, and budgets in epochs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.wrappers.replay import Replay
from harness.cli.app import app
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.engines.hf import HFEngine
from harness.errors import ConfigError, RunError
from harness.lm.checkpoints import load_checkpoint
from harness.pipeline.branch import start_from
from harness.pipeline.resources import RunResources
from harness.pipeline.run import run
from harness.pipeline.shared_key import shared_key
from harness.pipeline.stage_context import ContextBuilder
from harness.rundir.files import write_sealed
from harness.rundir.process.progress import Event, silent
from harness.rundir.reader import find_runs
from harness.rundir.store import is_finished, read_manifest
from harness.rundir.training.rollout_log import keep_nothing
from tests.support.models import micro_suite, write_yaml
from tests.support.runs import cells, changed_suite, manifest

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


def test_a_branch_starts_where_the_other_run_s_stage_ended(micro: Suite, aopd: Path, tmp_path: Path):
    spec = start_from(RunSpec(micro, "opd", 0, out=tmp_path), f"{aopd.parent}/seed{{seed}}/stage_1")
    path = run(spec)
    record, parent = manifest(path), manifest(aopd)
    assert record["weights"]["start"] == parent["weights"]["stage_1"]
    assert [stage["name"] for stage in record["stages"]] == ["tiny_currency"]
    assert record["probes"] == ["tiny_weather", "tiny_reminder"]
    assert record["start"] == "aopd-tiny_weather"
    origin = record["config"]["origin"]
    assert (origin["suite"], origin["adapter"], origin["seed"], origin["stage"]) == ("micro", "aopd", 0, 1)
    assert origin["weights"] == parent["weights"]["stage_1"]
    assert origin["config_hash"] == parent["config_hash"]
    start, after = cells(path), cells(aopd)
    for task in ("tiny_weather", "tiny_currency", "tiny_reminder"):
        assert start[f"stage_0/eval/{task}"]["score"] == after[f"stage_1_tiny_weather/eval/{task}"]["score"]
    assert is_finished(spec)


def test_a_branch_by_the_same_method_goes_on_as_the_other_run_did_apart_from_its_stream(
    micro: Suite, aopd: Path, tmp_path: Path
):
    """Its first stage is stage 1, so it draws other prompts; replay knows what was trained before it."""
    spec = start_from(RunSpec(micro, "aopd", 0, out=tmp_path), str(aopd / "stage_1_tiny_weather"))
    assert [before.task for before in spec.suite.origin.trained] == ["tiny_weather"]  # pyright: ignore[reportOptionalMemberAccess]
    assert spec.stages[0].index == 1


def test_a_branch_knows_how_many_items_the_other_run_s_method_drew_from(aopd: Path, micro: Suite, tmp_path: Path):
    """The budget may be the entry's own, or that of a stage's own adapter."""
    folder = Path(shutil.copytree(aopd, tmp_path / "other"))
    found = read_manifest(folder)
    assert found is not None
    config = deepcopy(found.config)
    config["adapter"]["training"] = {"train_items": 7}
    config["stages"][1]["adapter"] = {"adapter": "sft", "options": {}, "training": {"train_items": 3}}
    write_sealed(folder / "manifest.json", found.model_copy(update={"config": config}))
    spec = start_from(
        RunSpec(changed_suite(tmp_path, lambda raw: raw.update(name="new")), "opd", 0), str(folder / "stage_2")
    )
    assert spec.suite.origin is not None
    assert [(before.task, before.items) for before in spec.suite.origin.trained] == [
        ("tiny_weather", 7),
        ("tiny_currency", 3),
    ]


def test_a_branch_of_another_suite_trains_all_its_stages(aopd: Path, tmp_path: Path):
    suite = changed_suite(tmp_path, lambda raw: raw.update(name="other"))
    spec = start_from(RunSpec(suite, "opd", 0, out=tmp_path), str(aopd / "stage_2"))
    assert [stage.name for stage in spec.stages] == ["tiny_weather", "tiny_currency"]
    assert spec.suite.probes == suite.probes


def test_a_branch_replays_tasks_that_only_the_other_suite_has_and_not_those_that_its_stage_trains(
    aopd: Path, tmp_path: Path
):
    adapters = {"replay": {"options": {"of": "opd", "share": 0.2}}}
    stages = ["tiny_weather", "tiny_reminder"]

    def change(raw: dict[str, Any]) -> None:
        raw.update(name="other", adapters=adapters, stages=stages, probes=[])

    spec = start_from(RunSpec(changed_suite(tmp_path, change), "replay", 0, out=tmp_path), str(aopd / "stage_2"))
    resources = RunResources(spec, silent)
    student = load_checkpoint(resources.start, spec.suite.student, "cpu")
    engine = HFEngine(student.model, student.renderer.tokenizer)
    contexts = [
        ContextBuilder(resources).build(stage, tmp_path, student, "", engine, keep_nothing)
        for stage in resources.spec.stages
    ]
    assert [list(ctx.past_tasks) for ctx in contexts] == [["tiny_currency"], ["tiny_weather", "tiny_currency"]]
    assert [Counter(example.task for example in ctx.past) for ctx in contexts] == [
        {"tiny_currency": 100},
        {"tiny_weather": 100, "tiny_currency": 100},
    ]
    replay = resources.adapter
    assert isinstance(replay, Replay)
    shares = replay.changed(contexts[0]).shares
    assert shares == {"tiny_weather": pytest.approx(0.8), "tiny_currency": pytest.approx(0.2)}


@pytest.mark.slow
def test_a_branch_of_a_branch_knows_all_that_was_trained(aopd: Path, tmp_path: Path):
    stages = ["tiny_weather", "tiny_currency", "tiny_reminder"]
    suite = changed_suite(tmp_path, lambda raw: raw.update(stages=stages, probes=[]))
    first = run(start_from(RunSpec(suite, "opd", 0, out=tmp_path / "first"), str(aopd / "stage_1")))
    spec = start_from(RunSpec(suite, "sft", 0, out=tmp_path / "second"), str(first / "stage_1"))
    assert [stage.name for stage in spec.stages] == ["tiny_reminder"]
    assert spec.suite.probes == ("tiny_weather", "tiny_currency")


def test_a_branch_keeps_its_place_in_the_configuration(micro: Suite, aopd: Path, opd: Path):
    plain = RunSpec(micro, "opd", 0)
    branches = [start_from(plain, str(path / "stage_1")) for path in (aopd, opd)]
    assert len({spec.config_hash for spec in (plain, *branches)}) == 3
    assert start_from(plain, str(aopd / "stage_1")).config_hash == branches[0].config_hash


@pytest.mark.parametrize("place", ["nowhere/stage_1", "{run}", "{run}/stage_0", "{run}/stage_7"])
def test_a_place_that_is_not_a_stage_is_refused(place: str, micro: Suite, aopd: Path):
    with pytest.raises(ConfigError, match="--from"):
        start_from(RunSpec(micro, "opd", 0), place.replace("{run}", str(aopd)))


def test_a_suite_without_a_stage_left_is_refused(micro: Suite, aopd: Path):
    with pytest.raises(ConfigError, match="no stage after tiny_currency"):
        start_from(RunSpec(micro, "opd", 0), str(aopd / "stage_2"))


def test_an_unfinished_stage_is_refused(micro: Suite, aopd: Path, tmp_path: Path):
    copy = Path(shutil.copytree(aopd, tmp_path / "run"))
    (copy / "stage_2_tiny_currency/train/done.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        start_from(RunSpec(micro, "opd", 0), str(copy / "stage_2"))


def test_a_stage_with_other_weights_is_refused(micro: Suite, aopd: Path, tmp_path: Path):
    copy = Path(shutil.copytree(aopd, tmp_path / "run"))
    shutil.copy(
        aopd / "stage_2_tiny_currency/train/checkpoint/model.safetensors",
        copy / "stage_1_tiny_weather/train/checkpoint",
    )
    with pytest.raises(RunError, match="its run recorded"):
        start_from(RunSpec(micro, "opd", 0), str(copy / "stage_1"))


def test_the_dry_run_of_a_branch_writes_nothing(micro_file: Path, aopd: Path, tmp_path: Path):
    arguments = [
        "run",
        str(micro_file),
        "--adapter",
        "opd",
        "--from",
        str(aopd / "stage_1"),
        "--out",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "tiny_currency" in done.output
    assert not (tmp_path / "o").exists()


def test_a_sweep_of_branches_keeps_the_checkpoint_for_those_that_wait_too(
    micro_file: Path, aopd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = Path(shutil.copytree(aopd, tmp_path / "source"))
    needed_by = source / "stage_1_tiny_weather/train/needed_by"
    shutil.rmtree(needed_by, ignore_errors=True)  # of branches of other tests
    monkeypatch.setattr("harness.pipeline.sweeps.sweep.sweep", lambda *_: None)  # no run begins
    arguments = ["sweep", str(micro_file), "--adapter", "opd,sft", "--seed", "0", "--from", str(source / "stage_1")]
    noted: list[int] = []
    for last in ("--dry-run", "--no-report"):
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "o"), last])
        assert done.exit_code == 0, done.output
        noted.append(len(list(needed_by.glob("*.json"))))
    assert noted == [0, 2]


def test_a_finished_branch_needs_the_checkpoint_no_more_and_another_one_does(micro: Suite, aopd: Path, tmp_path: Path):
    source = Path(shutil.copytree(aopd, tmp_path / "source"))
    finished, other = (RunSpec(micro, entry, 0, out=tmp_path / "runs") for entry in ("none", "opd"))
    branch = start_from(finished, str(source / "stage_1"))
    run(branch)
    shutil.rmtree(source / "stage_1_tiny_weather/train/checkpoint")
    assert start_from(finished, str(source / "stage_1")).config_hash == branch.config_hash
    with pytest.raises(RunError, match="was not kept"):
        start_from(other, str(source / "stage_1"))


def test_named_starts_choose_a_checkpoint_and_name_the_run(student_folder: Path, teacher_folder: Path, tmp_path: Path):
    starts = {"weak": {"path": str(student_folder)}, "strong": {"path": str(teacher_folder)}}
    student = {"kind": "pretrained", "starts": starts, "start": "weak", "chat": {"template": "chatml"}}
    file = write_yaml(tmp_path / "micro.yaml", micro_suite() | {"student": student})
    weak, strong = load_suite(str(file)), load_suite(str(file), ["student.start=strong"])
    paths = [run(RunSpec(suite, "none", 0, out=tmp_path / name)) for name, suite in (("w", weak), ("s", strong))]
    assert [manifest(path)["start"] for path in paths] == ["weak", "strong"]
    assert manifest(paths[0])["start_checkpoint"] == str(student_folder.resolve())
    assert manifest(paths[0])["weights"]["start"] != manifest(paths[1])["weights"]["start"]
    assert len({RunSpec(suite, "none", 0).config_hash for suite in (weak, strong)}) == 2


def test_a_start_added_later_leaves_the_others_as_they_are(student_folder: Path, teacher_folder: Path, tmp_path: Path):
    def hash_with(names: dict[str, Path]) -> str:
        starts = {name: {"path": str(path)} for name, path in names.items()}
        student = {"kind": "pretrained", "starts": starts, "start": "weak"}
        return RunSpec(changed_suite(tmp_path, lambda raw: raw.update(student=student)), "opd", 0).config_hash

    assert hash_with({"weak": student_folder}) == hash_with({"weak": student_folder, "strong": teacher_folder})


@pytest.mark.parametrize(
    ("student", "found"),
    [
        ({"starts": {"weak": {"path": "a"}}, "start": "strong"}, "expected one of starts: weak"),
        ({"starts": {"weak": {"path": "a"}}}, "expected one of starts: weak"),
        ({"starts": {"weak": {"path": "a"}}, "start": "weak", "path": "b"}, "path or revision next to starts"),
        ({}, "path: missing"),
    ],
)
def test_starts_that_do_not_say_which_are_refused(student: dict[str, Any], found: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=found):
        changed_suite(tmp_path, lambda raw: raw.update(student={"kind": "pretrained", **student}))


def test_epochs_are_counted_in_training_items(tmp_path: Path):
    training = {
        "epochs": 1.5,
        "train_items": 10,
        "prompts_per_step": 4,
        "max_new_tokens": 24,
        "optimizer": {"lr": 1e-3},
    }
    suite = changed_suite(tmp_path, lambda raw: raw.update(training=training, stages=["tiny_weather"]))
    path = run(RunSpec(suite, "sft", 0, out=tmp_path))
    assert manifest(path)["stages"][0]["steps"] == 4  # 15 prompts, four a step
    assert len((path / "stage_1_tiny_weather/train/steps.jsonl").read_text().splitlines()) == 4
    assert json.loads((path / "stage_1_tiny_weather/train/done.json").read_text())["steps"] == 4
    assert is_finished(RunSpec(suite, "sft", 0, out=tmp_path))


def test_a_stage_or_entry_may_replace_one_kind_of_budget_by_the_other(tmp_path: Path):
    stages = ["tiny_weather", {"task": "tiny_currency", "training": {"epochs": 2}}]
    adapters = {"opd": {}, "sft": {"training": {"epochs": 3}}}
    suite = changed_suite(tmp_path, lambda raw: raw.update(stages=stages, adapters=adapters))
    found = {
        entry: [(s.training.epochs, s.training.steps) for s in RunSpec(suite, entry, 0).counted(lambda *_: 8).stages]
        for entry in adapters
    }
    assert found == {"opd": [(None, 2), (None, 4)], "sft": [(None, 6), (None, 6)]}
    joint = replace(RunSpec(suite, "sft", 0), order="joint")
    with pytest.raises(ValueError, match="differ in teacher or training"):
        _ = joint.stages


def test_two_budgets_in_one_place_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="one budget"):
        changed_suite(tmp_path, lambda raw: raw["training"].update(steps=3, epochs=1))


def test_a_joint_stage_in_epochs_draws_from_all_tasks(tmp_path: Path):
    training = {"epochs": 1, "train_items": 6, "prompts_per_step": 4, "max_new_tokens": 24}
    suite = changed_suite(tmp_path, lambda raw: raw.update(training=training))
    (stage,) = RunSpec(suite, "opd", 0, "joint").counted(lambda _, limit: limit or 0).stages
    assert stage.training.steps == 3
