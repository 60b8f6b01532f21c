"""A run directory keeps its promises: a run continues only from what it recorded, and files are vouched for once written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adapters.opd import OPD
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec, identity_of
from harness.config.suite import Suite
from harness.config.teacher_identity import full_identity
from harness.errors import RunError
from harness.lm.ranks import ALONE
from harness.pipeline.processes import stop_signals
from harness.pipeline.processes.stop_signals import stop_on_signals
from harness.pipeline.run import run
from harness.rundir import files
from harness.rundir.differences import find_differences
from harness.rundir.files import json_line, read_json, remove_partials, replace_file, write_cell, write_json
from harness.rundir.process.progress import Event
from harness.rundir.schema import Session
from harness.rundir.stage_folder import stage_folder
from harness.rundir.store import RunStore, is_finished
from harness.rundir.training.snapshots import FileSnapshots, ShardedSnapshots, StopRequest
from tests.support.models import write_yaml
from tests.support.reports.records import cell_of, manifest_of
from tests.support.runs import FOLDERS, cells, flip_a_byte
from tests.support.runs import manifest as manifest_json


def spec_with(file: Path, *overrides: str, entry: str = "aopd") -> RunSpec:
    return RunSpec(load_suite(str(file), list(overrides)), entry, 0)


THRESHOLD = "adapters.aopd.options.threshold"


def test_two_configurations_that_differ_in_an_infinity_are_two_runs(micro_file: Path):
    hashes = {spec_with(micro_file, f"{THRESHOLD}={value}").config_hash for value in (".inf", "-.inf", "0.0")}
    assert len(hashes) == 3


def test_numbers_that_json_lacks_are_read_back_as_they_were(tmp_path: Path):
    manifest = manifest_of(config={"threshold": float("-inf")}, adapter_config={"threshold": float("inf")})
    RunStore(tmp_path).start(manifest, Session(seconds={"total": float("nan")}))
    text = (tmp_path / "manifest.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = RunStore(tmp_path).manifest
    assert found is not None
    assert found.config_hash == manifest.config_hash
    assert float(found.config["threshold"]) == float("-inf")
    assert found.made.seconds is not None
    assert found.made.seconds["total"] != found.made.seconds["total"]


@pytest.mark.parametrize(
    "override",
    ["training.micro_batch=1", "evaluation.batch_size=3", "device=cpu", "threads=1"],
)
def test_how_fast_and_where_a_run_works_may_change_while_it_goes_on(micro_file: Path, override: str):
    assert spec_with(micro_file, override).config_hash == spec_with(micro_file).config_hash


@pytest.mark.parametrize(
    "override", ["training.generation_batch=1", "training.steps=3", "evaluation.limit=2", "training.optimizer.lr=0.5"]
)
def test_what_decides_numbers_may_not_change(micro_file: Path, override: str):
    assert spec_with(micro_file, override).config_hash != spec_with(micro_file).config_hash


def test_a_folder_with_stages_and_no_manifest_is_not_adopted(tmp_path: Path):
    write_cell(stage_folder(tmp_path, 0).cell("tiny_weather"), cell_of(1), cell_frame())
    with pytest.raises(RunError, match=r"stages and no manifest\.json"):
        RunStore(tmp_path).start(manifest_of(), Session())
    (tmp_path / "manifest.json").write_text("null")
    with pytest.raises(RunError, match="expected the manifest of a run"):
        RunStore(tmp_path).start(manifest_of(), Session())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"weights": {"start": "b"}}, "weights of the start"),
        ({"inputs": {"start": "b"}}, "configuration or tokenizer of the start"),
        ({"overlap": {"rows": [], "digests": {"stage 1 tiny_weather": "b"}}}, "records of stage 1 tiny_weather"),
    ],
)
def test_a_run_goes_on_only_from_the_inputs_it_began_with(tmp_path: Path, changes: dict[str, Any], what: str):
    began: dict[str, Any] = {"weights": {"start": "a"}, "inputs": {"start": "a"}}
    began["overlap"] = {"rows": [], "digests": {"stage 1 tiny_weather": "a"}}
    RunStore(tmp_path).start(manifest_of(**began), Session())
    RunStore(tmp_path).start(manifest_of(**began), Session())
    with pytest.raises(RunError, match=f"the {what} changed"):
        RunStore(tmp_path).start(manifest_of(**{**began, **changes}), Session())


def cell_frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"item_id": ["a"], "score": [1.0]})


def turn_rope(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", flip_a_byte), ("config.json", turn_rope), ("tokenizer.json", flip_a_byte)],
)
def test_a_stage_is_trained_only_from_the_checkpoint_that_the_stage_before_left(
    name: str, damage: Callable[[Path], None], micro: Suite, aopd: Path, tmp_path: Path
):
    spec = RunSpec(micro, "aopd", 0, out=tmp_path)
    shutil.copytree(aopd, spec.path)
    shutil.rmtree(spec.path / FOLDERS[2])
    damage(spec.path / FOLDERS[1] / "train/checkpoint" / name)
    with pytest.raises(RunError, match=r"recorded as stage_1: .*restore it"):
        run(spec)


def test_a_run_that_stopped_goes_on_with_smaller_batches_in_another_place(micro_file: Path, aopd: Path, tmp_path: Path):
    suite = load_suite(str(micro_file), ["training.micro_batch=1", "threads=1"])
    spec = RunSpec(suite, "aopd", 0, out=tmp_path / "moved")
    shutil.copytree(aopd, spec.path)
    assert is_finished(spec)
    shutil.rmtree(spec.path / FOLDERS[2])
    run(spec)
    assert is_finished(spec)
    found = manifest_json(spec.path)
    assert found["sessions"][-1]["settings"]["training.micro_batch"] == 1
    assert cells(spec.path).keys() == cells(aopd).keys()


LOGS = ("steps.jsonl", "rollouts.jsonl")


def offered(folder: Path, **inputs: str) -> FileSnapshots:
    """Keep a snapshot before step 2 whose log holds two steps."""
    folder.mkdir(exist_ok=True)
    for name in LOGS:
        (folder / name).write_text('{"step": 0}\n{"step": 1}\n')
    kept = FileSnapshots(folder, 0, inputs)
    kept.offer(2, lambda: {"weights": torch.ones(50)})
    return kept


def test_a_snapshot_with_a_changed_byte_is_refused(tmp_path: Path):
    kept = offered(tmp_path)
    flip_a_byte(kept.path)
    with pytest.raises(RunError, match=r"snapshot.pt is damaged"):
        kept.load()


def several_offered(folder: Path) -> ShardedSnapshots:
    """Keep a snapshot before step 2 as several processes do, with its tensors in shards."""
    kept = ShardedSnapshots(FileSnapshots(folder, 0), ALONE)
    kept.offer(2, lambda: {"student": {"weight": torch.arange(50.0)}})
    return kept


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("damage", [flip_a_byte, cut, Path.unlink])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_a_file_of_shards_that_is_changed_cut_or_missing_is_refused(
    name: str, damage: Callable[[Path], None], tmp_path: Path
):
    kept = several_offered(tmp_path)
    assert kept.load() is not None
    damage(tmp_path / "shards-2" / name)
    for snapshots in (kept, FileSnapshots(tmp_path, 0)):
        with pytest.raises(RunError, match=rf"snapshot.pt is damaged \(shards-2/{name} .*; restore it"):
            snapshots.load()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_snapshot_of_a_version_that_recorded_no_digests_of_shards_loads(tmp_path: Path):
    kept = several_offered(tmp_path)
    state = torch.load(kept.file.path, weights_only=True)
    del state["recorded"]["shards"]
    torch.save(state, kept.file.path)
    found = kept.load()
    assert found is not None
    assert torch.equal(found["student"]["weight"], torch.arange(50.0))


@pytest.mark.parametrize("step", [1, 500])
def test_a_snapshot_of_another_step_than_its_log_is_refused(tmp_path: Path, step: int):
    kept = offered(tmp_path)
    state = torch.load(kept.path, weights_only=True)
    state["step"] = step
    torch.save(state, kept.path)
    if step == 500:
        state["recorded"]["steps.jsonl"] = "another"
        torch.save(state, kept.path)
    with pytest.raises(RunError, match=rf"steps\.jsonl .*\b{step} steps before"):
        kept.load()


@pytest.mark.parametrize("name", LOGS)
def test_a_snapshot_whose_logs_are_gone_or_cut_is_refused(tmp_path: Path, name: str):
    kept = offered(tmp_path)
    assert kept.load() is not None
    (tmp_path / name).write_text('{"step": 0}\n')
    with pytest.raises(RunError, match=rf"{name} .*\b2 steps before"):
        kept.load()
    (tmp_path / name).unlink()
    with pytest.raises(RunError, match=rf"{name} .*\b2 steps before"):
        kept.load()


def test_an_answer_that_holds_line_separators_is_taken_up_as_it_is(tmp_path: Path):
    lines = [json_line({"step": step, "response": "a\u2028b\x85c\x1c\x0c"}) for step in (0, 1)]
    (tmp_path / "steps.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "rollouts.jsonl").write_text(lines[0], encoding="utf-8")
    kept = FileSnapshots(tmp_path, 0)
    kept.offer(1, lambda: {"weights": torch.ones(2)})
    (tmp_path / "rollouts.jsonl").write_text("".join(lines), encoding="utf-8")
    assert kept.load() is not None
    assert (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8") == lines[0]


def test_a_snapshot_is_taken_up_only_with_the_teacher_and_the_checkpoint_it_was_taken_with(tmp_path: Path):
    offered(tmp_path, teacher="a", checkpoint="c")
    assert FileSnapshots(tmp_path, 0, {"teacher": "a", "checkpoint": "c"}).load() is not None
    with pytest.raises(RunError, match="taken with another teacher"):
        FileSnapshots(tmp_path, 0, {"teacher": "b", "checkpoint": "c"}).load()
    # An earlier version recorded the digest of the teacher's weights alone.
    assert FileSnapshots(tmp_path, 0, {"teacher": full_identity("a", "x"), "checkpoint": "c"}).load() is not None
    offered(tmp_path, teacher=full_identity("a", "x"), checkpoint="c")
    with pytest.raises(RunError, match="taken with another teacher"):
        FileSnapshots(tmp_path, 0, {"teacher": full_identity("a", "y"), "checkpoint": "c"}).load()


def test_a_file_that_vouches_for_others_is_written_after_these_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    real_sync, real_rename = files.sync, Path.rename

    def sync(path: Path) -> None:
        order.append(path.name)
        real_sync(path)

    def rename(path: Path, target: Path) -> Path:
        order.append("the folder appears")
        return real_rename(path, target)

    monkeypatch.setattr(files, "sync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    write_cell(tmp_path / "eval" / "task", cell_of(1), cell_frame())
    appears = order.index("the folder appears")
    assert {"samples.parquet", "results.json"} <= set(order[:appears])
    assert order[appears + 1 :] == ["eval"]


def test_a_file_that_could_not_be_written_leaves_nothing_that_fills_the_disk(tmp_path: Path):
    def fills_up(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write_json(tmp_path / "value.json", {"old": 1})
    with pytest.raises(RunError, match=r"disk is full; .*same command continues"):
        replace_file(tmp_path / "value.json", fills_up)
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]
    assert read_json(tmp_path / "value.json") == {"old": 1}


def test_half_written_files_of_a_killed_process_are_removed_when_the_next_one_holds_the_directory(tmp_path: Path):
    train = tmp_path / "stage_1_x" / "train"
    (tmp_path / "stage_0/eval/.task.a1b2c3d4").mkdir(parents=True)
    train.mkdir(parents=True)
    for path in (
        tmp_path / ".manifest.json.123",
        train / ".snapshot.pt.99",
        train / "snapshot.pt",
        train / "rollouts.jsonl",
    ):
        path.write_text("half")
    remove_partials(tmp_path)
    assert {path.name for path in train.iterdir()} == {"snapshot.pt", "rollouts.jsonl"}
    (train / "done.json").write_text('{"steps": 1}')
    with RunStore(tmp_path).locked():
        assert [path.name for path in train.iterdir()] == ["done.json"]
        assert not list((tmp_path / "stage_0/eval").iterdir())
        assert not (tmp_path / ".manifest.json.123").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_snapshot_and_says_that_the_same_command_continues(
    number: signal.Signals, micro: Suite, aopd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses, calls = OPD.token_losses, []

    def stopping(self: OPD, tokens: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), number)
        return losses(self, tokens)

    spec = RunSpec(micro, "opd", 0, out=tmp_path)
    monkeypatch.setattr(OPD, "token_losses", stopping)
    before = signal.getsignal(number)
    with pytest.raises(RunError, match=f"{number.name} before step 1, .*snapshot; .*same command continues"):
        run(spec)
    assert signal.getsignal(number) == before
    assert (spec.path / FOLDERS[1] / "train" / "snapshot.pt").is_file()


def ended_by(request: StopRequest, *signals: signal.Signals) -> None:
    with stop_on_signals(request):
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.1)


def interrupt(request: StopRequest) -> None:
    with stop_on_signals(request):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_a_signal_names_what_it_costs_where_no_snapshot_is_kept():
    request = StopRequest(cost="stage_1_tiny_weather begins again; ")
    with pytest.raises(RunError, match="stage_1_tiny_weather begins again"):
        interrupt(request)


def swallow(number: signal.Signals) -> None:
    """Get a signal in code that catches everything, as some libraries do."""
    with suppress(BaseException):
        os.kill(os.getpid(), number)
        time.sleep(5)


def test_a_signal_whose_exception_a_library_catches_ends_the_run_before_its_next_stage(micro: Suite, tmp_path: Path):
    spec, evaluated = RunSpec(micro, "opd", 0, out=tmp_path), list[str]()

    def report(event: Event) -> None:
        if event.activity == "evaluate start" and not evaluated:
            evaluated.append(event.activity)
            swallow(signal.SIGTERM)

    with pytest.raises(RunError, match=r"SIGTERM; .*same command continues"):
        run(spec, report)
    assert evaluated
    assert not (spec.path / FOLDERS[1] / "train").exists()


def test_a_worker_that_a_signal_did_not_end_begins_no_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stop_signals, "_outside_runs", [])
    before = {number: signal.getsignal(number) for number in stop_signals.SIGNALS}
    try:
        stop_signals.exit_on_signals()
        swallow(signal.SIGINT)
        with pytest.raises(RunError, match="stopped by SIGINT"), stop_on_signals(StopRequest()):
            pytest.fail("the block ran")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_outside_a_training_ends_at_once_and_a_second_one_always():
    with pytest.raises(RunError, match="stopped by SIGTERM; the same"):
        ended_by(StopRequest(), signal.SIGTERM)
    request = StopRequest(waited_for=True)
    ended_by(request, signal.SIGTERM)
    assert request.signal == "SIGTERM"
    request.since = time.monotonic()
    ended_by(request, signal.SIGINT)
    assert request.signal == "SIGTERM", "a signal right after the first is the same request"
    request.since -= 1
    with pytest.raises(RunError, match="stopped by SIGINT"):
        ended_by(request, signal.SIGINT)


def test_a_stages_own_adapter_goes_on_with_smaller_micro_batches_and_other_settings_are_named(micro_file: Path):
    raw = yaml.safe_load(micro_file.read_text())
    raw["stages"] = [{"task": "tiny_weather", "adapter": "sft"}, "tiny_currency"]
    warm = str(write_yaml(micro_file.with_name("warm.yaml"), raw))
    plain, smaller, longer = (
        RunSpec(load_suite(warm, [f"stages.0.adapter={{adapter: sft, training: {training}}}"]), "opd", 0)
        for training in ("{steps: 2}", "{steps: 2, micro_batch: 1}", "{steps: 3}")
    )
    assert smaller.config_hash == plain.config_hash
    assert set(find_differences(identity_of(plain.config()), identity_of(longer.config()))) == {
        "stages.0.adapter.training.steps"
    }


def test_the_place_of_a_server_behind_two_teachers_is_no_part_of_a_run(micro_file: Path):
    def at(port: int) -> str:
        server = {"kind": "server", "urls": [f"http://127.0.0.1:{port}"], "model": "teacher"}
        behind = {"kind": "routed", "by_task": {"tiny_weather": server}, "otherwise": server}
        raw = yaml.safe_load(micro_file.read_text())
        raw["teacher"] = {"kind": "cache", "path": "scores.db", "of": behind}
        return RunSpec(load_suite(str(write_yaml(micro_file.with_name("served.yaml"), raw))), "opd", 0).config_hash

    assert at(8000) == at(8001)


def test_a_run_whose_hash_counted_what_may_change_now_is_the_same_run(micro_file: Path, tmp_path: Path):
    spec = replace(spec_with(micro_file), out=tmp_path)
    now = manifest_of(config=spec.config(), config_hash=spec.config_hash)
    store = RunStore(spec.path)
    store.path.mkdir(parents=True)
    store.start(now.model_copy(update={"config_hash": "of an earlier version", "sessions": ()}), Session())
    store.refuse_another(now)
    other = spec_with(micro_file, "training.steps=3")
    with pytest.raises(RunError, match=r"training\.steps"):
        store.refuse_another(manifest_of(config=other.config(), config_hash=other.config_hash))
