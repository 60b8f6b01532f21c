"""Named starts of a pretrained student, and budgets in epochs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.errors import ConfigError
from harness.pipeline.run import run
from harness.rundir.store import is_finished
from tests.support.models import micro_suite, write_yaml
from tests.support.runs import changed_suite, manifest


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
