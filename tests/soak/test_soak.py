"""Each attack with a small budget; `make soak` tries many of each and writes the table of docs/reliability.md."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from tests.soak.full_disks import fill_disks
from tests.soak.kills import kill_runs
from tests.soak.many_stages import train_many
from tests.soak.mutations import mutate_commands, mutate_models, mutate_runs, mutate_suites, mutate_tasks
from tests.soak.outcomes import Outcomes, as_table
from tests.soak.power_cuts import can_mount, cut_power
from tests.soak.served_faults import break_answers
from tests.soak.unsynced import drop_unsynced


@pytest.fixture(autouse=True)
def synced(real_fsync: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writes wait for the disk, as they do outside the tests."""
    monkeypatch.setattr(os, "fsync", real_fsync)


@pytest.fixture
def spec(micro_file: Path, tmp_path: Path) -> RunSpec:
    suite = load_suite(str(micro_file), ["snapshot_minutes=0", "student.seed=0"])
    return RunSpec(suite, "aopd", 0, out=tmp_path / "runs")


@pytest.fixture
def may_mount(tmp_path: Path) -> None:
    if not shutil.which("mkfs.ext4") or not can_mount(tmp_path):
        pytest.skip("this process may not mount loop devices")


def assert_held(found: Outcomes) -> None:
    print(as_table([found]))
    assert found.details == []


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_with_the_undisturbed_numbers(spec: RunSpec, tmp_path: Path):
    assert_held(kill_runs(spec, tmp_path, 2, seed=1))


@pytest.mark.slow
@pytest.mark.usefixtures("may_mount")
def test_a_run_whose_power_is_cut_at_any_moment_ends_with_the_undisturbed_numbers(spec: RunSpec, tmp_path: Path):
    assert_held(cut_power(spec, tmp_path, 2, seed=2))


@pytest.mark.slow
def test_a_run_goes_on_from_what_was_synced_before_any_moment(spec: RunSpec, tmp_path: Path):
    assert_held(drop_unsynced(spec, tmp_path, 3, seed=3))


@pytest.mark.slow
@pytest.mark.usefixtures("may_mount")
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_space(spec: RunSpec, tmp_path: Path):
    assert_held(fill_disks(spec, tmp_path, 2, seed=4))


@pytest.mark.slow
def test_broken_answers_of_a_served_teacher_change_no_run_and_end_none(tmp_path: Path):
    assert_held(break_answers(tmp_path, 60, seed=5))


@pytest.mark.slow
def test_stage_after_stage_takes_no_more_memory_files_or_time(spec: RunSpec, tmp_path: Path):
    assert_held(train_many(spec, tmp_path, 12))


def test_mutated_suites_are_read_or_refused_in_a_sentence(tmp_path: Path):
    assert_held(mutate_suites(tmp_path, 150))


@pytest.mark.slow
def test_mutated_tasks_and_records_are_read_or_refused_in_a_sentence(tmp_path: Path):
    assert_held(mutate_tasks(tmp_path, 40))


def test_mutated_runs_are_never_silently_other_runs(aopd: Path, tmp_path: Path):
    assert_held(mutate_runs(aopd, tmp_path, 60))


def test_mutated_model_folders_are_read_or_refused_in_a_sentence(student_folder: Path, tmp_path: Path):
    assert_held(mutate_models(student_folder, tmp_path, 30))


def test_mutated_command_lines_end_with_a_sentence(aopd: Path, tmp_path: Path):
    assert_held(mutate_commands(aopd, tmp_path, 30))
