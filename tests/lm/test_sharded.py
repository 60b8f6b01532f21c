"""Several processes train one student: losses, gradients, weights and snapshots are those of one process."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessException

from adapters.conformance.small_stage import AdapterUnderTest, train_small_stage
from harness.adapter import StageContext, make_adapter, registered
from harness.config.suite import AdapterEntry
from harness.config.training import Optimizer
from harness.errors import RunError, StoppedError
from harness.lm.optimiser import Updater
from harness.lm.ranks import ALONE, Ranks, whole
from harness.lm.rollouts import make_batches
from harness.pipeline.processes.rank_processes import leave_group
from harness.rundir.training.snapshots import FileSnapshots, StopRequest, shared_snapshots
from tests.support.models import rollout
from tests.support.processes import start_together
from tests.support.runs import flip_a_byte

pytestmark = pytest.mark.slow
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"top_k": 4} for name in ("aopd", "tropd", "fkl")},
    **{name: {"of": "opd"} for name in ("replay", "ewc", "kl_to_start", "lora")},
    "grpo": {"reduction": "micro_batch_mean"},
    "sft": {"disable_dropout": True},
    "sdft": {"ema_rate": 0.3, "updates_per_rollout": 2},
}
# What trains by a trainer of its own stays in one process.
OWN_TRAINERS = ("trl", "external", "none")
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"tokens_per_batch": 24, "activation_checkpointing": True},
    "fillers": {"micro_batch": 1},
    "masters": {"precision": "bfloat16_master"},
    "stale": {"staleness": 1},
}
STEPS = 3
RESUMED: dict[str, dict[str, Any]] = {"aopd": {"staleness": 1}, "sdft": {}}


def methods() -> list[str]:
    return [name for name in registered() if name not in (*OWN_TRAINERS, "bounded_opd")]


def stage_of(name: str, folder: Path, dtype: torch.dtype = torch.float64, **training: Any) -> tuple[Any, StageContext]:
    adapter = make_adapter(name, AdapterEntry(options=OPTIONS.get(name, {})))
    few = {"micro_batch": 3} if name == "grpo" else {}
    stage = AdapterUnderTest(adapter, folder).stage
    return adapter, stage(steps=STEPS, dtype=dtype, scripted=False, reference_seed=0, **few, **training)


def weights_of(ctx: StageContext) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in ctx.student.model.state_dict().items()}


class Trained(NamedTuple):
    """What a stage leaves: its final weights, its step log, and the gradients of its updates by parameter."""

    weights: dict[str, Tensor]
    lines: list[dict[str, Any]]
    gradients: list[dict[str, Tensor]]


def trained(name: str, folder: Path, **training: Any) -> Trained:
    """Train a stage and return what it leaves."""
    lines, gradients = list[dict[str, Any]](), list[dict[str, Tensor]]()
    dtype = torch.float32 if training.get("precision") else torch.float64
    adapter, ctx = stage_of(name, folder, dtype, **training)

    def watched(module: nn.Module, settings: Optimizer, total: int) -> Updater:
        updater = ctx.make_updater(module, settings, total)

        def keep(*_: Any) -> None:
            # All processes ask for the whole of each gradient, in one order.
            found = ((name, whole(p.grad)) for name, p in module.named_parameters() if p.grad is not None)
            gradients.append({name: value.detach().clone() for name, value in found})

        updater.optimizer.register_step_pre_hook(keep)
        return updater

    train_small_stage(adapter, replace(ctx, log=lines.append, make_updater=watched))
    return Trained(weights_of(ctx), lines, gradients)


def join(rank: int, size: int, meeting: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)


def every_method(folder: Path, names: list[str], modes: dict[str, Any]) -> None:
    """Train each method in each mode and let the first process save what it then has."""
    for mode, training in modes.items():
        for name in names:
            found = trained(name, folder, **training)
            if distributed.get_rank() == 0:
                torch.save(found, folder / f"{name}-{mode}-{distributed.get_world_size()}.pt")


def start(work: Callable[..., None], size: int, *arguments: Any) -> None:
    """Let processes do work together as one group."""
    # A file of an earlier group would keep the new one waiting.
    with tempfile.TemporaryDirectory() as place:
        start_together(work, size, size, f"{place}/meeting", *arguments)


def differences(found: Any, expected: Any) -> Iterator[tuple[str, float]]:
    """Yield by how much weights, each update's gradients and logged figures differ."""
    (weights, lines, gradients), (own, ours, others) = found, expected
    assert gradients or not ours or not ours[0].get("lr"), "updates whose gradients nobody saw"
    for place, (here, there) in enumerate(zip([weights, *gradients], [own, *others], strict=True)):
        assert here.keys() == there.keys()
        title = f"gradient {place} of " if place else ""
        yield from ((f"{title}{name}", float((value - there[name]).abs().max())) for name, value in here.items())
    for line, other in zip(lines, ours, strict=True):
        for name in set(line) - {"seconds", "warnings", "padding_share"}:
            assert (line[name] is None) == (other[name] is None), name
            if line[name] is not None:
                yield name, abs(line[name] - other[name])


def first_processes(rank: int, size: int, meeting: str, folder: Path) -> None:
    """Train every method; leave a stage undisturbed, and one that a signal stops."""
    join(rank, size, meeting)
    every_method(folder, methods(), {"plain": {}})
    every_method(folder, ["opd", "lora", "ewc"], {mode: MODES[mode] for mode in MODES if mode != "plain"})
    for name in RESUMED:
        resume(folder / name / "whole", name)
        resume(folder / name / "stopped", name, stop=True)
    leave_group()


def later_processes(rank: int, size: int, meeting: str, folder: Path) -> None:
    """Go on with the stopped and with the killed stages; four processes train every method from the start too."""
    join(rank, size, meeting)
    for name in RESUMED:
        for end in ("stopped", "killed"):
            resume(folder / name / f"{end}-{size}", name)
    if size == 4:
        every_method(folder, methods(), {"plain": {}})
    leave_group()


def killed_processes(rank: int, size: int, meeting: str, folder: Path) -> None:
    """Begin a stage; each process is killed in its second step, after the snapshot of the first one."""
    join(rank, size, meeting)
    (name,) = (name for name in RESUMED if (folder / name / "dies").exists())
    adapter, ctx = stage_of(name, folder, **RESUMED[name])

    def kill(line: Mapping[str, Any]) -> None:
        if line["step"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    snapshots = shared_snapshots(FileSnapshots(folder / name / "killed", 0))
    train_small_stage(adapter, replace(ctx, snapshots=snapshots, log=kill))


def kill_both(folder: Path, name: str) -> None:
    """Let two processes begin a stage and be killed."""
    (folder / name / "killed").mkdir()
    (folder / name / "dies").touch()
    # The first process may fail on the lost connection before its own kill is noticed.
    with pytest.raises(ProcessException, match=r"SIGKILL|Connection"):
        start(killed_processes, 2, folder)
    (folder / name / "dies").unlink()


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of every method over two and four processes, and of stages stopped or killed and continued by others."""
    folder = tmp_path_factory.mktemp("several")
    for name in RESUMED:
        for place in ("whole", "stopped"):
            (folder / name / place).mkdir(parents=True)
    start(first_processes, 2, folder)
    for name in RESUMED:
        kill_both(folder, name)
        for end in ("stopped", "killed"):
            for size in (1, 2, 4):
                shutil.copytree(folder / name / end, folder / name / f"{end}-{size}")
    for size in (2, 4):
        start(later_processes, size, folder)
    return folder


@pytest.mark.parametrize("name", methods())
def test_two_and_four_processes_end_with_the_weights_and_figures_of_one(name: str, several: Path, tmp_path: Path):
    alone = trained(name, tmp_path)
    for size in (2, 4):
        found = torch.load(several / f"{name}-plain-{size}.pt", weights_only=False)
        apart = dict(differences(found, alone))
        assert max(apart.values()) <= 1e-6, (size, apart)


@pytest.mark.parametrize("name", ["opd", "lora", "ewc"])
@pytest.mark.parametrize("mode", ["packed", "fillers", "masters", "stale"])
def test_other_modes_train_in_several_processes(name: str, mode: str, several: Path, tmp_path: Path):
    found = torch.load(several / f"{name}-{mode}-2.pt", weights_only=False)
    apart = dict(differences(found, trained(name, tmp_path, **MODES[mode])))
    weights, bound = (
        {n: v for n, v in apart.items() if "." in n and not n.startswith("gradient")},
        {"masters": 5e-3}.get(mode, 1e-6),
    )
    assert max(weights.values()) <= bound, weights


def resume(folder: Path, name: str, *, stop: bool = False) -> None:
    """Train until a signal stops the stage after a step, or to the end, from the snapshot where there is one."""
    adapter, ctx = stage_of(name, folder, **RESUMED[name])
    request = StopRequest("SIGTERM" if stop else "")
    # The signal comes while the first step is done; a look at the snapshots is a step's end.
    snapshots = shared_snapshots(FileSnapshots(folder, 0 if stop else 60, stop=request))
    lines: list[dict[str, Any]] = []
    try:
        train_small_stage(adapter, replace(ctx, snapshots=snapshots, log=lines.append))
    except StoppedError:
        assert stop
        return
    assert not stop
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        torch.save((weights_of(ctx), [line["step"] for line in lines]), folder / "resumed.pt")


@pytest.mark.parametrize("end", ["stopped", "killed"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_stage_stopped_or_killed_on_two_processes_goes_on_with_one_two_and_four(name: str, end: str, several: Path):
    stopped = several / name / end
    assert len([path for path in stopped.rglob("*") if path.is_file() and "shards" in str(path)]) >= 2, (
        "each process writes its part"
    )
    resume(several / name / f"{end}-1", name)
    undisturbed, steps = torch.load(several / name / "whole" / "resumed.pt")
    assert steps == [0, 1, 2]
    for size, bound in ((2, 0.0), (1, 1e-6), (4, 1e-6)):
        found, steps = torch.load(several / name / f"{end}-{size}" / "resumed.pt")
        assert steps == [1, 2], "it went on after the first step"
        apart = max(float((value - undisturbed[key]).abs().max()) for key, value in found.items())
        assert apart <= bound, (size, apart)


@pytest.mark.parametrize("name", RESUMED)
def test_a_changed_byte_in_the_shard_of_any_process_is_refused(name: str, several: Path, tmp_path: Path):
    for number in range(2):
        folder = shutil.copytree(several / name / "stopped", tmp_path / str(number))
        (shard,) = folder.glob(f"shards-*/__{number}_*")
        flip_a_byte(shard)
        with pytest.raises(RunError, match=rf"snapshot.pt is damaged .*{shard.name}"):
            FileSnapshots(folder, 60).load()


def test_shares_of_a_batch_have_its_weights_and_as_many_batches_each():
    rollouts = [rollout([3] * n, [5] * (n + 1)) for n in range(1, 8)]
    together = make_batches(rollouts, "micro_batch_mean", 3)
    parts = [make_batches(rollouts, "micro_batch_mean", 3, ranks=Ranks(rank, 4)) for rank in range(4)]
    assert {len(batches) for batches in parts} == {len(together)}
    for place, batch in enumerate(together):
        shared = [batches[place] for batches in parts]
        assert sum(len(b.rollouts) for b in shared if not b.filler) == len(batch.rollouts)
        assert sum(float(b.weights.sum()) for b in shared) == pytest.approx(float(batch.weights.sum()))
        assert all(not b.weights.any() for b in shared if b.filler)


def test_equal_prompts_are_one_process():
    keys = [(1,), (2,), (1,), (3,), (2,)]
    shares = [Ranks(rank, 2).share(keys) for rank in range(2)]
    assert sorted(place for share in shares for place in share) == [0, 1, 2, 3, 4]
    assert all(
        len({rank for rank, share in enumerate(shares) if p in share or q in share}) == 1 for p, q in ((0, 2), (1, 4))
    )
    assert ALONE.share(keys) == [0, 1, 2, 3, 4]
