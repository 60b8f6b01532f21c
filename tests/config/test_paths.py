"""Model folders in a suite count from the suite's folder, those of `--set` from the current one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config.load import load_suite
from harness.config.models import Pretrained
from harness.config.suite import Suite
from harness.errors import ConfigError
from tests.support.models import micro_suite, write_yaml


def load(folder: Path, student: str, *overrides: str, **changes: Any) -> Suite:
    model = {"kind": "pretrained", "path": student}
    raw = {**micro_suite(), "student": model, **changes}
    return load_suite(str(write_yaml(folder / "suite.yaml", raw)), overrides)


def path_of(suite: Suite) -> str:
    assert isinstance(suite.student, Pretrained)
    return suite.student.path


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite's folder with a model, away from the current folder, which has another one."""
    for place in ("suites/models/mine", "here/models/other"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "suites"


@pytest.mark.parametrize("path", ["models/mine", "./models/mine", "../suites/models/mine"])
def test_a_folder_counts_from_the_suite(suites: Path, path: str):
    assert path_of(load(suites, path)) == str(suites / "models" / "mine")


def test_an_override_counts_from_the_current_folder(suites: Path, tmp_path: Path):
    found = load(suites, "models/mine", "student.path=models/other")
    assert path_of(found) == str(tmp_path / "here" / "models" / "other")


def test_a_store_counts_from_the_suite_and_in_an_override_from_the_current_folder(suites: Path, tmp_path: Path):
    assert load(suites, "models/mine", storage="bucket").storage == str(suites / "bucket")
    assert load(suites, "models/mine", "storage=bucket").storage == str(tmp_path / "here" / "bucket")
    for url in ("s3://bucket/runs", f"file://{tmp_path}/bucket", "simplecache::s3://bucket/runs"):
        assert load(suites, "models/mine", storage=url).storage == url
        assert load(suites, "models/mine", f"storage={url}").storage == url
    assert load(suites, "models/mine", "storage=null", storage="bucket").storage is None


def test_a_teachers_folder_counts_the_same_in_a_stage(suites: Path):
    teacher = {"kind": "pretrained", "path": "models/mine"}
    stages = [{"task": "tiny_weather", "teacher": teacher}, "tiny_currency"]
    found = load(suites, "org/student", teacher=teacher, stages=stages)
    assert path_of(found) == "org/student"  # a name on the hub stays
    for model in (found.teacher, found.stages[0].teacher):
        assert isinstance(model, Pretrained)
        assert model.path == str(suites / "models" / "mine")


def test_so_do_the_folders_of_teachers_behind_another_teacher(suites: Path, tmp_path: Path):
    own = {"kind": "pretrained", "path": "models/mine", "chat": {"template": "chat.jinja"}}
    cached = {"kind": "cache", "path": "scores.db", "of": own}
    routed = {"kind": "routed", "by_task": {"tiny_weather": own}, "otherwise": cached}
    stages = [{"task": "tiny_weather", "teacher": cached}, "tiny_currency"]
    found = load(suites, "org/student", teacher=routed, stages=stages).model_dump(mode="json")
    of_suite, of_stage = found["teacher"], found["stages"][0]["teacher"]
    behind = [of_suite["by_task"]["tiny_weather"], of_suite["otherwise"]["of"], of_stage["of"]]
    assert {model["path"] for model in behind} == {str(suites / "models" / "mine")}
    assert {model["chat"]["template"] for model in behind} == {str(suites / "chat.jinja")}
    changed = load(suites, "org/student", "teacher.of.path=models/other", teacher=cached).model_dump(mode="json")
    assert changed["teacher"]["of"]["path"] == str(tmp_path / "here" / "models" / "other")
    stages[0] = {"task": "tiny_weather", "teacher": {**cached, "of": {**own, "path": "./models/mnie"}}}
    with pytest.raises(ConfigError, match=r"stages\.0\.teacher\.of\.path: \./models/mnie"):
        load(suites, "org/student", stages=stages)


def test_the_file_of_a_caches_scores_counts_as_models_do(suites: Path, tmp_path: Path):
    cached = {"kind": "cache", "path": "scores.db"}
    routed = {"kind": "routed", "by_task": {"tiny_weather": cached}, "otherwise": {**cached, "path": "more/scores.db"}}

    def paths(*overrides: str) -> tuple[str, str]:
        stages = [{"task": "tiny_weather", "teacher": routed}, "tiny_currency"]
        found = load(suites, "org/student", *overrides, teacher=cached, stages=stages).model_dump(mode="json")
        return found["teacher"]["path"], found["stages"][0]["teacher"]["otherwise"]["path"]

    assert paths() == (str(suites / "scores.db"), str(suites / "more" / "scores.db"))
    assert paths("teacher.path=other.db")[0] == str(tmp_path / "here" / "other.db")
    assert paths("teacher.path=/scores.db")[0] == "/scores.db"


@pytest.mark.parametrize("path", ["./models/mnie", "/no/such/model", "models/other"])
def test_a_folder_that_is_not_there_is_refused_with_the_place_it_counts_from(suites: Path, path: str):
    with pytest.raises(ConfigError, match=rf"student\.path: {path}.*{suites}"):
        load(suites, path)


def test_a_moved_suite_keeps_its_hash(suites: Path, tmp_path: Path):
    from harness.config.run_spec import RunSpec

    one = RunSpec(load(suites, "models/mine"), "opd", 0)
    (tmp_path / "moved" / "models" / "mine").mkdir(parents=True)
    assert RunSpec(load(tmp_path / "moved", "models/mine"), "opd", 0).config_hash == one.config_hash


def test_models_of_one_name_by_two_owners_on_the_hub_are_two_configurations(suites: Path):
    from harness.config.run_spec import RunSpec

    students = (load(suites, f"{owner}/Qwen3-8B") for owner in ("Qwen", "acme"))
    assert len({RunSpec(suite, "opd", 0).config_hash for suite in students}) == 2
