"""The student in DistributedDataParallel: two processes with half a batch each have the whole batch's gradients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from harness.logprobs import StudentForward
from harness.rollouts import make_batches
from tests.models import assert_same_gradients, gradients, qwen3, rollout

ROLLOUTS = [
    rollout([3, 4, 5], [6, 7, 2]),
    rollout([8], [9, 10, 2]),
    rollout([3, 1], [4, 1, 2]),
    rollout([7], [5, 5, 2]),
]


def loss_of(student: Any, part: list[Any]) -> Tensor:
    """Return the mean negative log-likelihood of rollouts of equal length."""
    (batch,) = make_batches(part, "token_mean", None)
    return -(student(batch, batch.targets[:, None]).chosen[:, 0] * batch.weights).sum()


def work(rank: int, folder: str) -> None:
    """Take one half's gradients inside the wrapper and save what this process then holds."""
    torch.set_num_threads(1)
    # A machine's other interfaces may lead nowhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    wrapped = DistributedDataParallel(StudentForward(qwen3()))
    loss_of(wrapped, ROLLOUTS[2 * rank : 2 * rank + 2]).backward()
    torch.save(gradients(wrapped.module), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path: Path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    student = StudentForward(qwen3())
    loss_of(student, ROLLOUTS).backward()
    for rank in range(2):
        assert_same_gradients(torch.load(tmp_path / f"{rank}.pt"), gradients(student), 1e-9)
