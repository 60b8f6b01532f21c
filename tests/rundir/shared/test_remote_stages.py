"""Finished stages in a store at any fsspec URL: another machine fetches a stage as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.errors import ConfigError, RunError
from harness.rundir.files import write_sealed
from harness.rundir.shared.listed_folders import put_file
from harness.rundir.shared.remote_stages import RemoteStages, is_done
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import read_manifest
from tests.support.reports.run_factory import write_finished
from tests.support.reports.study_factory import constant


def a_run(out: Path, stages: int = 1, finished: str | None = None) -> Path:
    run = out / "suite/opd/default/seed0"
    (run / "stage_0/eval/sums").mkdir(parents=True)
    (run / "stage_0/eval/sums/results.json").write_text("{}")
    for stage in range(1, stages + 1):
        train = run / f"stage_{stage}_sums/train"
        (train / "checkpoint").mkdir(parents=True)
        (train / "checkpoint/model.safetensors").write_bytes(bytes([stage]) * 100)
        (train / "done.json").write_text("{}")
    weights = {f"stage_{stage}": str(stage) for stage in range(1, stages + 1)}
    (run / "manifest.json").write_text(json.dumps({"weights": weights, "finished": finished}))
    return run


def folders(run: Path) -> list[StageFolder]:
    return [StageFolder(path) for path in sorted(run.glob("stage_*"))]


def files(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/bucket"


def test_a_machine_that_has_nothing_fetches_all_that_is_finished(url: str, tmp_path: Path):
    run = a_run(tmp_path / "here", stages=2)
    RemoteStages(url, run, tmp_path / "here").put(*folders(run))
    other = tmp_path / "there/suite/opd/default/seed0"
    other.mkdir(parents=True)
    RemoteStages(url, other, tmp_path / "there").fetch()
    assert files(other) == files(run)
    (other / "stage_1_sums/train/checkpoint/model.safetensors").unlink()
    RemoteStages(url, other, tmp_path / "there").fetch()
    assert files(other) == files(run)


def test_only_what_changed_is_copied_again_and_what_is_gone_goes(url: str, tmp_path: Path):
    run, out = a_run(tmp_path), tmp_path
    store = RemoteStages(url, run, out)
    store.put(*folders(run))
    system, root = fsspec.core.url_to_fs(f"{url}/suite/opd/default/seed0")
    (run / "stage_1_sums/train/checkpoint/model.safetensors").unlink()
    (run / "stage_1_sums/eval/sums").mkdir(parents=True)
    (run / "stage_1_sums/eval/sums/results.json").write_text("new")
    store.put(*folders(run))
    assert not system.exists(f"{root}/stage_1_sums/train/checkpoint/model.safetensors")
    assert system.cat_file(f"{root}/stage_1_sums/eval/sums/results.json") == b"new"


@pytest.mark.parametrize("copied", [0, 1, 2])
def test_a_copy_that_ends_early_leaves_a_stage_as_it_was(
    url: str, tmp_path: Path, copied: int, monkeypatch: pytest.MonkeyPatch
):
    run, out = a_run(tmp_path / "here"), tmp_path / "here"
    store = RemoteStages(url, run, out)
    store.put(*folders(run))
    before = files(run / "stage_1_sums")
    (run / "stage_1_sums/train/done.json").write_text('{"kept": false}')
    (run / "stage_1_sums/train/checkpoint/model.safetensors").unlink()
    for task in ("calls", "sums"):
        (run / f"stage_1_sums/eval/{task}").mkdir(parents=True)
        (run / f"stage_1_sums/eval/{task}/results.json").write_text(task)
    puts: list[str] = []

    def put_some(system: Any, file: Path, target: str) -> None:
        if len(puts) == copied:
            raise OSError("the machine is gone")
        puts.append(target)
        put_file(system, file, target)

    with monkeypatch.context() as patched:
        patched.setattr("harness.rundir.shared.listed_folders.put_file", put_some)
        with pytest.raises(RunError, match="gone"):
            store.put(*folders(run))
    other = tmp_path / "there/suite/opd/default/seed0"
    other.mkdir(parents=True)
    RemoteStages(url, other, tmp_path / "there").fetch()
    fetched = files(other / "stage_1_sums")
    assert all(fetched.get(name) == content for name, content in before.items() if copied < 2 or "done" not in name)
    store.put(*folders(run))
    shutil.rmtree(tmp_path / "there")
    other.mkdir(parents=True)
    RemoteStages(url, other, tmp_path / "there").fetch()
    assert files(other) == files(run)


def test_a_stage_whose_list_was_not_written_is_not_fetched_and_a_damaged_file_is_named(url: str, tmp_path: Path):
    run, out = a_run(tmp_path / "here", stages=2), tmp_path / "here"
    RemoteStages(url, run, out).put(*folders(run))
    system, root = fsspec.core.url_to_fs(f"{url}/suite/opd/default/seed0")
    system.rm_file(f"{root}/complete/stage_2_sums.json")
    other = tmp_path / "there/suite/opd/default/seed0"
    other.mkdir(parents=True)
    RemoteStages(url, other, tmp_path / "there").fetch()
    assert not (other / "stage_2_sums").exists()
    system.pipe_file(f"{root}/stage_0/eval/sums/results.json", b"other")
    third = tmp_path / "third/suite/opd/default/seed0"
    third.mkdir(parents=True)
    with pytest.raises(RunError, match=r"stage_0/eval/sums/results\.json .* has digest"):
        RemoteStages(url, third, tmp_path / "third").fetch()
    assert not (third / "stage_0").exists()


def test_the_manifest_that_knows_more_stages_stays(url: str, tmp_path: Path):
    old, new = a_run(tmp_path / "old"), a_run(tmp_path / "new", stages=2)
    RemoteStages(url, old, tmp_path / "old").put()
    RemoteStages(url, new, tmp_path / "new").fetch()
    assert len(json.loads((new / "manifest.json").read_text())["weights"]) == 2
    RemoteStages(url, new, tmp_path / "new").put()
    RemoteStages(url, old, tmp_path / "old").fetch()
    assert len(json.loads((old / "manifest.json").read_text())["weights"]) == 2


def test_a_list_that_was_cut_short_counts_as_none(url: str, tmp_path: Path):
    run, out = a_run(tmp_path / "here"), tmp_path / "here"
    RemoteStages(url, run, out).put(*folders(run))
    system, root = fsspec.core.url_to_fs(f"{url}/suite/opd/default/seed0")
    mark = f"{root}/complete/stage_1_sums.json"
    whole = system.cat_file(mark)
    system.pipe_file(mark, whole[: len(whole) // 2])
    other = tmp_path / "there/suite/opd/default/seed0"
    other.mkdir(parents=True)
    RemoteStages(url, other, tmp_path / "there").fetch()
    assert not (other / "stage_1_sums").exists()
    RemoteStages(url, run, out).put(*folders(run))
    assert system.cat_file(mark) == whole


def test_the_manifest_that_knows_more_sessions_stays(url: str, tmp_path: Path):
    old, new = a_run(tmp_path / "old"), a_run(tmp_path / "new")
    for run, sessions in ((old, [{}]), (new, [{}, {}])):
        content = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**content, "sessions": sessions}))
    RemoteStages(url, new, tmp_path / "new").put()
    RemoteStages(url, old, tmp_path / "old").fetch()
    assert (old / "manifest.json").read_bytes() == (new / "manifest.json").read_bytes()


def a_spec(out: Path, url: str | None, *overrides: str) -> RunSpec:
    storage = [f"storage={url}"] if url else []
    return RunSpec(load_suite("tiny", [*storage, *overrides]), "opd", 0, out=out)


def test_a_store_of_another_configuration_is_refused_and_nothing_is_fetched(url: str, tmp_path: Path):
    first = a_spec(tmp_path / "first", url)
    write_finished(first, constant(first, 0.6, 0.3))
    RemoteStages.of(first).put(*folders(first.path))
    other = a_spec(tmp_path / "second", url, "training.optimizer.lr=0.5")
    other.path.mkdir(parents=True)
    with pytest.raises(RunError, match=r"training\.optimizer\.lr.*`storage`.*`name`"):
        RemoteStages.of(other).fetch()
    assert not files(other.path)
    local = replace(other, out=tmp_path / "local")
    write_finished(local, constant(local, 0.6, 0.3))
    before = files(local.path)
    assert RemoteStages.of(local).lacks_end(), "the store has the end of another run"
    with pytest.raises(RunError, match="`storage`"):
        RemoteStages.of(local).fetch()
    assert files(local.path) == before
    same = replace(first, out=tmp_path / "third")
    same.path.mkdir(parents=True)
    RemoteStages.of(same).fetch()
    assert files(same.path) == files(first.path)
    assert is_done(same)


def test_a_store_replaces_no_manifest_of_another_configuration(url: str, tmp_path: Path):
    first = a_spec(tmp_path / "first", url)
    write_finished(first, constant(first, 0.6, 0.3))
    RemoteStages.of(first).put(*folders(first.path))
    former = a_spec(tmp_path / "second", None, "training.optimizer.lr=0.5")
    write_finished(former, constant(former, 0.6, 0.3))
    found = read_manifest(former.path)
    assert found is not None
    write_sealed(former.path / "manifest.json", found.model_copy(update={"finished": None, "weights": {}}))
    before = files(former.path)
    with pytest.raises(RunError, match="--out"):
        RemoteStages.of(replace(first, out=tmp_path / "second")).fetch()
    assert files(former.path) == before


def test_a_url_that_nothing_reads_is_one_sentence(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere://"):
        RemoteStages("nowhere://bucket", a_run(tmp_path), tmp_path).fetch()


@pytest.mark.parametrize("name", ["..", ".", "stage_9/../../../evil", "/evil"])
def test_a_list_never_names_a_place_outside_of_the_run(tmp_path: Path, name: str):
    run = a_run(tmp_path / "here")
    marks = tmp_path / "bucket/suite/opd/default/seed0/complete"
    marks.mkdir(parents=True)
    plain = "/" not in name
    (marks / f"{name if plain else 'stage_9'}.json").write_text(json.dumps({} if plain else {name: "0"}))
    before = files(tmp_path / "here")
    with pytest.raises(RunError, match="not a place in the run"):
        RemoteStages(f"file://{tmp_path}/bucket", run, tmp_path / "here").fetch()
    assert files(tmp_path / "here") == before
