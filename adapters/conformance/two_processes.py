"""Check that two processes train as one does (`parallel: {processes: 2}`): each has half of weights and rollouts."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.multiprocessing.spawn import (
    ProcessException,
    start_processes,  # pyright: ignore[reportUnknownVariableType]
)

from adapters.conformance.outcomes import ConformanceError, DoesNotApply
from adapters.conformance.small_stage import AdapterUnderTest, train_small_stage
from harness.adapter import Adapter
from harness.pipeline.processes.end_with_parent import end_with_parent
from harness.pipeline.processes.rank_processes import join_group, leave_group, loopback

PROCESSES, STEPS = 2, 2
TOLERANCE = 1e-6  # of losses and weights in float64


@dataclass(frozen=True)
class StageOutcome:
    """The final weights of a stage, by parameter, and the loss of each step."""

    weights: dict[str, Tensor]
    losses: list[float | None]


def trains_in_two_processes(subject: AdapterUnderTest) -> None:
    """Two processes end with the losses and the weights of one."""
    if not subject.adapter.capabilities.distributes:
        raise DoesNotApply("it trains in one process, so parallel.processes above 1 is refused")
    try:
        sent = pickle.dumps(subject.adapter)
    except (pickle.PicklingError, AttributeError) as error:
        raise DoesNotApply(f"another process cannot import its class ({error})") from error
    alone = _train(subject.adapter, subject.folder, subject.training)
    together = _train_together(sent, subject.training)
    pairs = zip(together.losses, alone.losses, strict=True)
    apart = {
        f"the loss of step {step}": abs(a - b) for step, (a, b) in enumerate(pairs) if a is not None and b is not None
    }
    apart |= {name: float((value - alone.weights[name]).abs().max()) for name, value in together.weights.items()}
    worst = max(apart, key=lambda name: apart[name])
    if not apart[worst] <= TOLERANCE:
        raise ConformanceError(
            f"two processes and one differ by up to {apart[worst]:.1e}, in {worst}, expected at most {TOLERANCE:g}; each "
            "process has a part of the batch, so take means and random numbers by token or by response, not by batch"
        )


def _train(adapter: Adapter, folder: Path, training: Mapping[str, Any]) -> StageOutcome:
    ctx = AdapterUnderTest(adapter, folder, training).stage(steps=STEPS, scripted=False, reference_seed=0)
    losses: list[float | None] = []

    def keep(line: Mapping[str, Any]) -> None:
        losses.append(line.get("loss"))

    train_small_stage(adapter, replace(ctx, log=keep))
    return StageOutcome(
        {name: value.detach().clone() for name, value in ctx.student.model.state_dict().items()}, losses
    )


def _train_together(adapter: bytes, training: Mapping[str, Any]) -> StageOutcome:
    """Train in two other processes; raises `ConformanceError` with the first error of one of them.

    They are forked from a process that has imported what they need and computed nothing, get this process's environment, and
    end with it.
    """
    multiprocessing.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory(prefix="conformance-ranks-") as place:
        folder = Path(place)
        try:
            sent = (adapter, dict(training), folder, dict(os.environ))
            start_processes(_work, sent, nprocs=PROCESSES, start_method="forkserver")
        except ProcessException as error:
            # The other process fails a moment later, because it loses this one.
            known = sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime_ns)
            reason = json.loads(known[0].read_text(encoding="utf-8")) if known else str(error)
            raise ConformanceError(f"one of two processes that train together failed with {reason}") from error
        return torch.load(folder / "ended.pt", weights_only=False)


def _work(rank: int, adapter: bytes, training: dict[str, Any], folder: Path, environment: dict[str, str]) -> None:
    """Train as one of two processes; the first one writes what it ends with."""
    end_with_parent()
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
    own = folder / f"rank-{rank}"
    own.mkdir()
    try:
        join_group(FileStore(str(folder / "meeting"), PROCESSES), rank, PROCESSES, "cpu")
        ended = _train(pickle.loads(adapter), own, training)
        if rank == 0:
            torch.save(ended, folder / "ended.pt")
        leave_group()
    except Exception as error:
        (folder / f"error-{rank}.json").write_text(json.dumps(f"{type(error).__name__}: {error}"), encoding="utf-8")
        raise
