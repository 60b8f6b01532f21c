"""What a run keeps on the disk: checkpoints by policy, none for a control, never fewer than something still needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Checkpoints, Suite
from harness.errors import RunError
from harness.pipeline.run import run
from harness.rundir.files import read_json, write_json
from harness.rundir.records.training_records import DoneFile
from harness.rundir.retention import check_space, drop_checkpoints, note_start
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import is_finished
from tests.support.models import micro_suite, write_yaml
from tests.support.reports.records import manifest_of
from tests.support.runs import FOLDERS, cells, manifest, steps


def test_the_last_checkpoint_stays_and_no_number_changes(micro: Suite, aopd: Path, tmp_path: Path):
    spec = RunSpec(micro.model_copy(update={"checkpoints": Checkpoints(keep="last")}), "aopd", 0, out=tmp_path)
    folder = run(spec)
    assert [(folder / stage / "train" / "checkpoint").is_dir() for stage in FOLDERS[1:]] == [False, True]
    assert [read_json(folder / stage / "train" / "done.json").get("kept", True) for stage in FOLDERS[1:]] == [
        False,
        True,
    ]
    assert (cells(folder), steps(folder)) == (cells(aopd), steps(aopd))
    assert manifest(folder)["config_hash"] == manifest(aopd)["config_hash"]
    assert is_finished(spec)
    assert run(spec) == folder


def test_a_control_writes_no_weights_and_its_stages_point_to_the_start(control: Path, student_folder: Path):
    assert not list(control.rglob("*.safetensors"))
    for stage in FOLDERS[1:]:
        assert StageFolder(control / stage).checkpoint == student_folder.resolve()


def test_the_weights_that_later_stages_of_a_control_share_stay(micro: Suite, tmp_path: Path):
    first, second = micro_suite()["stages"]
    raw = {**micro_suite(), "stages": [{"task": first, "adapter": "sft"}, second], "checkpoints": {"keep": "last"}}
    suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", raw)))
    folder = run(RunSpec(suite, "none", 0, out=tmp_path / "runs"))
    fixed, control = (StageFolder(folder / name) for name in FOLDERS[1:])
    assert control.checkpoint == fixed.own_checkpoint.resolve()
    assert fixed.own_checkpoint.is_dir()
    moved = folder.rename(tmp_path / "moved")
    assert StageFolder(moved / FOLDERS[2]).checkpoint == moved / FOLDERS[1] / "train/checkpoint"


def trained(folder: Path, stage: int, name: str) -> StageFolder:
    place = StageFolder(folder / f"stage_{stage}_{name}")
    place.own_checkpoint.mkdir(parents=True)
    write_json(place.path / "train" / "done.json", DoneFile(steps=1, weights="w").as_json())
    return place


@pytest.mark.parametrize(
    ("keep", "left"),
    [("all", ["a", "b"]), ("last", []), (("b",), ["b"]), ((), [])],
    ids=["all", "last", "named", "none"],
)
def test_what_the_policy_does_not_name_goes(tmp_path: Path, keep: str | tuple[str, ...], left: list[str]):
    stages = [SimpleNamespace(name=name) for name in "ab"]
    folders = [trained(tmp_path, number, stage.name) for number, stage in enumerate(stages, start=1)]
    drop_checkpoints(folders, stages, Checkpoints.model_validate({"keep": keep}))  # pyright: ignore[reportArgumentType]
    assert [stage.name for stage, folder in zip(stages, folders, strict=True) if folder.own_checkpoint.is_dir()] == left


def test_a_checkpoint_stays_until_every_run_that_started_from_it_is_finished(tmp_path: Path):
    folder, stage, branch = trained(tmp_path, 1, "a"), SimpleNamespace(name="a"), tmp_path / "branch"
    note_start(folder.own_checkpoint, branch)

    def left() -> bool:
        drop_checkpoints([folder], [stage], Checkpoints(keep="last"))  # pyright: ignore[reportArgumentType]
        return folder.own_checkpoint.is_dir()

    assert left()  # it has no manifest yet
    branch.mkdir()
    write_json(branch / "manifest.json", manifest_of().as_json())
    assert left()
    write_json(branch / "manifest.json", manifest_of(finished="2026-01-02T04:04:05+00:00").as_json())
    assert not left()


def test_a_start_that_is_not_a_runs_checkpoint_gets_no_note(tmp_path: Path):
    (tmp_path / "model").mkdir()
    note_start(tmp_path / "model", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_refused_before_a_stage_and_a_narrow_one_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):

    def free(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))

    free(999)
    with pytest.raises(RunError, match=r"stage a .*checkpoint .*free some space"):
        check_space(tmp_path, 1_000, "a", snapshots=2)
    free(6_999)
    assert "snapshots" in check_space(tmp_path, 1_000, "a", snapshots=2)
    assert check_space(tmp_path, 1_000, "a", snapshots=0) == ""
    free(7_000)
    assert check_space(tmp_path, 1_000, "a", snapshots=2) == ""


def test_a_stage_that_is_not_there_is_refused_when_the_suite_is_read(tmp_path: Path):
    from harness.config.load import load_suite
    from harness.errors import ConfigError

    raw = {**micro_suite(), "checkpoints": {"keep": ["tiny_wether"]}}
    with pytest.raises(ConfigError, match="tiny_wether"):
        load_suite(str(write_yaml(tmp_path / "micro.yaml", raw)))
