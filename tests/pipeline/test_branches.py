"""Branches: runs that start from another run's stage."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from adapters.wrappers.replay import Replay
from harness.cli.app import app
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.engines.hf import HFEngine
from harness.errors import ConfigError, RunError
from harness.lm.checkpoints import load_checkpoint
from harness.pipeline.branch import start_from
from harness.pipeline.resources import RunResources
from harness.pipeline.run import run
from harness.pipeline.stage_context import ContextBuilder
from harness.rundir.files import read_results, write_sealed
from harness.rundir.process.progress import silent
from harness.rundir.reader import find_runs
from harness.rundir.records.cell_records import CellSummary
from harness.rundir.store import is_finished, read_manifest
from harness.rundir.training.rollout_log import keep_nothing
from tests.support.runs import cells, changed_suite, manifest


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


@pytest.mark.slow
def test_the_final_figures_of_a_branch_count_no_task_that_was_trained_before_it_as_a_probe(
    micro: Suite, aopd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The micro student answers nothing right, so its scores at the start are put in its place."""
    at_start = {"tiny_weather": 0.75, "tiny_currency": 0.25, "tiny_reminder": 0.5}

    def read(cell: Path) -> CellSummary | None:
        found = read_results(cell)
        return found.model_copy(update={"score": at_start[cell.name]}) if found and "stage_0" in cell.parts else found

    monkeypatch.setattr("harness.pipeline.run.read_results", read)
    tracked = micro.model_copy(update={"trackers": ("tensorboard",)})
    path = run(start_from(RunSpec(tracked, "sft", 0, out=tmp_path), str(aopd / "stage_1")))
    (found,) = find_runs([path])
    roles = {"tiny_currency": "trained", "tiny_weather": "trained before", "tiny_reminder": "probe"}
    assert {task: found.role(task) for task in found.tasks} == roles
    assert {cells(path)[f"stage_1_tiny_currency/eval/{task}"]["score"] for task in at_start} == {0}
    (event,) = EventAccumulator(str(path / "trackers/tensorboard")).Reload().Scalars("final/probe_change")
    assert event.value == pytest.approx(-0.5)


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
    assert re.search(r"before\W+tiny_weather", done.output)
    assert re.search(r"probe\W+tiny_reminder", done.output)
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
