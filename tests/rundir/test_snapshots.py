"""An interrupted stage continues at its step and ends with the weights, log and scores of an undisturbed one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from adapters.loop import guards, training_loop
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD
from adapters.sdft import SDFT
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import RunError, TrainingError
from harness.lm.ranks import ALONE, current_ranks
from harness.pipeline.processes.rank_processes import join_group, leave_group, loopback
from harness.pipeline.run import run
from harness.rundir.process.progress import Event
from harness.rundir.stage_folder import StageFolder
from harness.rundir.training.shards import write_shards
from harness.rundir.training.snapshots import NO_SNAPSHOTS, FileSnapshots, ShardedSnapshots
from reports.data.frames import load_frames
from reports.document.grids import warnings_grid
from tests.support.models import ScriptedEngine
from tests.support.processes import start_together
from tests.support.runs import cells, manifest, steps
from tests.support.stages import stage

FULL_DISK = Path("/dev/full")  # Linux answers every write to it as a full disk does
has_full_disk = pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no file that is always full")

KILLED = """
import os, signal, sys
from pathlib import Path
from harness.pipeline.run import run
from harness.config.run_spec import RunSpec
from harness.config.load import load_suite

def report(event):
    if f"{event.activity} {event.done}" == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

run(RunSpec(load_suite(sys.argv[1], ["snapshot_minutes=0"]), "aopd", 0, out=Path(sys.argv[2])), report)
"""


@pytest.mark.slow
def test_a_run_killed_within_a_stage_does_only_the_steps_after_its_snapshot(
    micro: Suite, micro_file: Path, aopd: Path, tmp_path: Path
):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(micro_file), str(tmp_path), "stage 2 tiny_currency 2"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    spec = RunSpec(micro, "aopd", 0, out=tmp_path)
    train = spec.path / "stage_2_tiny_currency" / "train"
    assert (train / "snapshot.pt").is_file()
    assert len((train / "steps.jsonl").read_text().splitlines()) == 2
    seen: list[Event] = []
    run(spec, seen.append)
    assert [e.done for e in seen if e.activity == "stage 2 tiny_currency"] == [0, 2]
    assert not (train / "snapshot.pt").exists()
    assert manifest(spec.path)["weights"] == manifest(aopd)["weights"]
    assert steps(spec.path) == steps(aopd)
    assert cells(spec.path) == cells(aopd)
    for file in ("train/rollouts.parquet", "drift/samples.parquet"):
        found, expected = (pd.read_parquet(path / "stage_2_tiny_currency" / file) for path in (spec.path, aopd))
        pd.testing.assert_frame_equal(found, expected)


class StoppedError(Exception):
    """Ends a stage from within."""


class Demonstrating(SDFT):
    """Self-distillation without a real task: the demonstration is one more token."""

    def teacher_prompts(self, ctx: Any, rollouts: Any) -> list[list[int]]:
        return [[20, *r.example.prompt] for r in rollouts]


@pytest.mark.parametrize("adapter", [OPD(updates_per_rollout=2), Demonstrating(ema_rate=0.3)], ids=["opd", "sdft"])
def test_optimiser_schedule_and_moving_teacher_are_taken_up(adapter: LoopAdapter, tmp_path: Path):
    budget: dict[str, Any] = {
        "steps": 4, "prompts_per_step": 2, "optimizer": {"lr": 1e-2, "schedule": "linear", "warmup_steps": 1},
    }  # fmt: skip
    undisturbed = stage(budget)
    adapter.train_stage(undisturbed)

    def stopping(line: dict[str, Any]) -> None:
        if line["step"] == 2:
            raise StoppedError

    first = stage(budget)
    kept = FileSnapshots(tmp_path, 0)
    with pytest.raises(StoppedError):
        adapter.train_stage(replace(first, snapshots=kept, log=stopping))
    again = stage(budget)
    # The scripted engine goes on where a real one, which has no state, would be.
    again.engine.prompts.extend([[0]] * 4)  # pyright: ignore[reportAttributeAccessIssue]
    lines: list[dict[str, Any]] = []
    adapter.train_stage(replace(again, snapshots=FileSnapshots(tmp_path, None), log=lines.append))
    assert [line["step"] for line in lines] == [2, 3]
    for ctx in (undisturbed, again):
        assert ctx.reference is not None
    for left, right in zip(_tensors(undisturbed), _tensors(again), strict=True):
        assert torch.equal(left, right)


def test_a_step_log_is_taken_back_to_the_snapshot(tmp_path: Path):
    kept = FileSnapshots(tmp_path, 0)
    (tmp_path / "steps.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    kept.offer(2, lambda: {"weights": torch.ones(2)})
    (tmp_path / "steps.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    state = kept.load()
    assert state is not None
    assert state["step"] == 2
    assert (tmp_path / "steps.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'


def test_a_learning_curve_is_taken_back_to_the_snapshot_and_lost_points_are_named(tmp_path: Path):
    """A point counts the steps done, so that of the snapshot's own step stays."""
    curve = tmp_path / "curve.jsonl"
    curve.write_text('{"step": 0}\n{"step": 2}\n')
    FileSnapshots(tmp_path, 0).offer(2, lambda: {"weights": torch.ones(2)})
    curve.write_text('{"step": 0}\n{"step": 2}\n{"step": 3}\n{"st')
    assert FileSnapshots(tmp_path, 0).load() is not None
    assert curve.read_text() == '{"step": 0}\n{"step": 2}\n'
    curve.write_text('{"step": 0}\n{"st')
    with pytest.raises(RunError, match=r"curve\.jsonl .*\b2 steps before"):
        FileSnapshots(tmp_path, 0).load()


def test_snapshots_are_taken_when_they_are_due_only(tmp_path: Path):
    def never() -> dict[str, Any]:
        raise AssertionError

    FileSnapshots(tmp_path, None).offer(1, never)
    FileSnapshots(tmp_path, 10).offer(1, never)
    assert FileSnapshots(tmp_path, 10).load() is None


def test_a_snapshot_that_does_not_load_is_named(tmp_path: Path):
    (tmp_path / "snapshot.pt").write_text("half a snapshot")
    with pytest.raises(RunError, match=r"snapshot\.pt is damaged .*; restore"):
        FileSnapshots(tmp_path, None).load()


def test_a_full_disk_while_shards_are_joined_leaves_the_snapshot_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.save({"step": 1, "recorded": {}, "shards": "shards-1"}, tmp_path / "snapshot.pt")
    (tmp_path / "shards-1").mkdir()
    (tmp_path / "shards-1" / ".metadata").touch()

    def full(_: Path, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.format_utils.dcp_to_torch_save", full)
    with pytest.raises(RunError, match="the disk is full"):
        FileSnapshots(tmp_path, None).load()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shards-1", "snapshot.pt"]
    (tmp_path / ".shards-1.whole").write_bytes(b"what a killed process left")
    FileSnapshots(tmp_path, None).clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, file.stat().st_size // 2), Path.unlink])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_shards_that_do_not_load_are_named(name: str, damage: Callable[[Path], None], tmp_path: Path):
    """Snapshots of earlier versions hold no digests of their shards."""
    write_shards(tmp_path / "shards-1", {"student": {"weight": torch.arange(50.0)}})
    FileSnapshots(tmp_path, 0).keep(1, {"shards": "shards-1"})
    damage(tmp_path / "shards-1" / name)
    for snapshots in (FileSnapshots(tmp_path, None), ShardedSnapshots(FileSnapshots(tmp_path, None), ALONE)):
        with pytest.raises(RunError, match=r"snapshot\.pt is damaged .*; restore"):
            snapshots.load()


def offer_of_shards(folder: Path, step: int) -> None:
    """Offer a snapshot of one tensor that all processes hold, and one of this process's own."""
    ranks = current_ranks()
    held = {name: torch.full((50,), float(step)) for name in ("weight", f"of_{ranks.rank}")}
    ShardedSnapshots(FileSnapshots(folder, 0), ranks).offer(step, lambda: {"student": held})


def fill_disk_at(file: Path) -> None:
    """Let what is written to a file find a full disk."""
    file.parent.mkdir(exist_ok=True)
    file.symlink_to(FULL_DISK)


def assert_only_snapshot(folder: Path, step: int) -> None:
    assert sorted(file.name for file in folder.iterdir()) == [f"shards-{step}", "snapshot.pt"]
    state = FileSnapshots(folder, None).load()
    assert state is not None
    assert state["step"] == step
    assert torch.equal(state["student"]["weight"], torch.full((50,), float(step)))


@has_full_disk
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata.tmp"])
def test_a_full_disk_while_a_snapshot_of_shards_is_written_leaves_the_former_one_alone(name: str, tmp_path: Path):
    offer_of_shards(tmp_path, 1)
    fill_disk_at(tmp_path / "shards-2" / name)
    with pytest.raises(RunError, match=r"shards-2 could not be written, because the disk is full; .*continues"):
        offer_of_shards(tmp_path, 2)
    assert_only_snapshot(tmp_path, 1)
    offer_of_shards(tmp_path, 2)
    assert_only_snapshot(tmp_path, 2)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_full_disk_after_the_shards_leaves_the_former_snapshot_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    offer_of_shards(tmp_path, 1)
    save = torch.save

    def full(value: Any, target: Any) -> None:
        if isinstance(target, Path):  # the snapshot's own file; shards are written to streams
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, target)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="the disk is full"):
        offer_of_shards(tmp_path, 2)
    monkeypatch.undo()
    assert_only_snapshot(tmp_path, 1)


def fill_the_disk_of_the_second(rank: int, folder: Path) -> None:
    """Keep a snapshot, and have no room for the second process's part of the next one."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
    join_group(FileStore(str(folder / "meeting"), 2), rank, 2, "cpu")
    offer_of_shards(folder / "train", 1)
    if rank == 1:
        fill_disk_at(folder / "train" / "shards-2" / "__1_0.distcp")
    with pytest.raises(RunError, match=r"shards-2 could not be written, because the disk is full; .*continues"):
        offer_of_shards(folder / "train", 2)
    leave_group()


@has_full_disk
@pytest.mark.slow
def test_a_disk_that_is_full_for_one_of_two_processes_is_one_sentence_in_both(tmp_path: Path):
    (tmp_path / "train").mkdir()
    start_together(fill_the_disk_of_the_second, 2, tmp_path)
    assert_only_snapshot(tmp_path / "train", 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_weights_before_it(
    micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = OPD.token_losses
    calls: list[int] = []

    def breaking(self: OPD, tokens: Any) -> Any:
        calls.append(1)
        found = losses(self, tokens)
        return found if len(calls) < 2 else type(found)(found.losses * float("nan"))

    monkeypatch.setattr(OPD, "token_losses", breaking)
    spec = RunSpec(micro, "opd", 0, out=tmp_path)
    with pytest.raises(TrainingError, match=r"not finite.*; .*weights before .*last_good"):
        run(spec)
    stage = spec.path / "stage_1_tiny_weather"
    assert (stage / "last_good" / "model.safetensors").is_file()
    assert (stage / "last_good" / "tokenizer.json").is_file()
    lines = [json.loads(line) for line in (stage / "train" / "steps.jsonl").read_text().splitlines()]
    assert lines[-1] == {"step": 1, "loss": None, "warnings": ["non-finite"]}
    assert lines[0]["loss"] is not None
    raised = load_frames([tmp_path])
    assert [(row.stage, row.step, row.warning) for row in raised.warnings.itertuples()] == [(1, 1, "non-finite")]
    (row,) = warnings_grid(raised).rows
    assert row[-1].startswith("non-finite: ")
    # The next run starts the stage again, and keeps what the sentence named.
    StageFolder(stage).open_training()
    assert not (stage / "train" / "steps.jsonl").exists()
    assert (stage / "last_good" / "model.safetensors").is_file()


def test_warnings_of_a_killed_stage_are_those_of_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guards, "WINDOW", 2)
    # Every response is cut off, which a guard over two steps says once, at the second.
    cut = replace(stage({"steps": 6, "prompts_per_step": 2}), engine=ScriptedEngine([[5]]))
    state = {name: value.clone() for name, value in cut.student.state_dict().items()}
    whole = _lines_and_words(cut, NO_SNAPSHOTS)
    assert [name for line in whole[0] for name in line["warnings"]].count("truncation") == 1
    first: tuple[list[dict[str, Any]], list[str]] = ([], [])
    cut.student.load_state_dict(state)
    with pytest.raises(StoppedError):
        _lines_and_words(cut, FileSnapshots(tmp_path, 0), first, stop=4)
    second = _lines_and_words(cut, FileSnapshots(tmp_path, None))
    assert [line["warnings"] for line in first[0] + second[0]] == [line["warnings"] for line in whole[0]]
    assert first[1] + second[1] == whole[1]


def _lines_and_words(
    ctx: Any, snapshots: Any, kept: tuple[list[dict[str, Any]], list[str]] | None = None, stop: int | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Train a stage and return its step log and its warnings; it is killed when it logs step `stop`."""
    lines, warnings = ([], []) if kept is None else kept

    def log(line: dict[str, Any]) -> None:
        if line["step"] == stop:
            raise StoppedError
        lines.append(line)

    OPD().train_stage(replace(ctx, snapshots=snapshots, log=log, warn=warnings.append))
    return lines, warnings


def test_a_snapshot_holds_the_generators_of_every_device(monkeypatch: pytest.MonkeyPatch):
    devices, taken = [torch.arange(4), torch.arange(4, 8)], list[Any]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", taken.append)
    state = training_loop._generators()
    torch.rand(3)
    training_loop._set_generators(state)
    assert torch.equal(torch.get_rng_state(), state["random"])
    assert taken == [devices]
    training_loop._set_generators({**state, "random_cuda": devices[:1]})
    assert taken == [devices], "another number of devices draws from its own seeds"


def _tensors(ctx: Any) -> list[Any]:
    return [*ctx.student.state_dict().values(), *ctx.reference.model.state_dict().values()]
