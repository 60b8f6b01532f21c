"""A stage that all methods share, interrupted: the next run that trains it continues from its snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.rundir.shared.shared_stages import SharedStages
from harness.rundir.stage_folder import StageFolder


def a_stage(out: Path, method: str, snapshot: str = "") -> StageFolder:
    stage = StageFolder(out / f"suite/{method}/default/seed0/stage_1_sums")
    (stage.path / "train").mkdir(parents=True)
    (out / "stages").mkdir(exist_ok=True)
    if snapshot:
        (stage.path / "train" / "snapshot.pt").write_text(snapshot)
    return stage


def content(out: Path) -> dict[str, str]:
    return {file.parts[-6]: file.read_text() for file in out.glob("suite/*/default/seed0/*/train/snapshot.pt")}


def test_the_snapshot_goes_to_the_run_that_trains_next(tmp_path: Path):
    shared = SharedStages(tmp_path)
    first, second, third = (a_stage(tmp_path, name) for name in ("opd", "aopd", "sft"))
    shared.begin("key", first)
    (first.path / "train" / "snapshot.pt").write_text("step 5")
    shared.begin("key", second)
    assert content(tmp_path) == {"aopd": "step 5"}
    (second.path / "train" / "snapshot.pt").write_text("step 7")
    shared.begin("other key", third)
    assert content(tmp_path) == {"aopd": "step 7"}
    shared.begin("key", first)
    assert content(tmp_path) == {"opd": "step 7"}


def test_a_snapshot_of_the_runs_own_stays(tmp_path: Path):
    shared = SharedStages(tmp_path)
    first, second = a_stage(tmp_path, "opd", "step 5"), a_stage(tmp_path, "aopd", "step 9")
    shared.begin("key", first)
    shared.begin("key", second)
    assert content(tmp_path) == {"opd": "step 5", "aopd": "step 9"}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_snapshot_of_another_configuration_stays_where_it_is(replaced: bool, tmp_path: Path):
    shared = SharedStages(tmp_path)
    first, second = a_stage(tmp_path, "opd", "step 5"), a_stage(tmp_path, "aopd")
    shared.begin("key", first)
    if replaced:
        (first.path / "shared.json").unlink()
    else:
        shared.begin("other key", first)
    shared.begin("key", second)
    assert content(tmp_path) == {"opd": "step 5"}


def test_a_finished_stage_leaves_no_notes(tmp_path: Path):
    shared, stage = SharedStages(tmp_path), a_stage(tmp_path, "opd")
    shared.begin("key", stage)
    (stage.path / "train" / "done.json").write_text('{"steps": 1}')
    shared.put("key", stage)
    assert [file.name for file in stage.path.iterdir()] == ["train"]
    assert [file.name for file in (tmp_path / "stages").iterdir()] == ["key"]
