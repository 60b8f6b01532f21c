"""The student in a wrapper: every loss stays inside its forward, and two processes have the whole batch's gradients."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from harness.adapter import make_adapter
from harness.config.suite import AdapterEntry
from harness.lm.logprobs import LogProbs, StudentForward, StudentRequest
from harness.lm.ranks import current_ranks
from harness.lm.rollouts import Batch, make_batches
from harness.pipeline.processes.rank_processes import leave_group
from tests.support.models import assert_same_gradients, gradients, qwen3, rollout
from tests.support.processes import start_together
from tests.support.stages import Recorder, stage

ROLLOUTS = [
    rollout([3, 4, 5], [6, 7, 2]),
    rollout([8], [9, 10, 2]),
    rollout([3, 1], [4, 1, 2]),
    rollout([7], [5, 5, 2]),
]
PLAIN = StudentRequest()
GROUPS = 40


def loss_of(student: Any, part: list[Any]) -> Tensor:
    """Return the mean negative log-likelihood of rollouts of equal length."""
    (batch,) = make_batches(part, "token_mean", None)
    return -(student(batch, batch.targets[:, None]).chosen[:, 0] * batch.weights).sum()


def join(rank: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    # A machine's other interfaces may lead nowhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


def wrapped_after_backward(rank: int) -> DistributedDataParallel:
    """Take one half's gradients inside the wrapper."""
    wrapped = DistributedDataParallel(StudentForward(qwen3()))
    loss_of(wrapped, ROLLOUTS[2 * rank : 2 * rank + 2]).backward()
    return wrapped


def work(rank: int, folder: str) -> None:
    """Save what this process holds after a backward pass."""
    join(rank, Path(folder) / "meeting")
    torch.save(gradients(wrapped_after_backward(rank).module), f"{folder}/{rank}.pt")
    leave_group()


def leave_many_groups(rank: int, folder: str) -> None:
    """Leave one group after another right after its last collective, while the wrapper still holds it."""
    for number in range(GROUPS):
        join(rank, Path(folder) / str(number))
        wrapped = wrapped_after_backward(rank)
        leave_group()
        del wrapped
        (Path(folder) / f"left-{rank}-{number}").touch()


def wait_for_a_slow_first_process(rank: int, folder: str) -> None:
    """The first process comes long after the others' limit, and dies before the second exchange."""
    join(rank, Path(folder) / "meeting")
    group: Any = distributed.group.WORLD
    group._get_backend(torch.device("cpu"))._set_default_timeout(timedelta(seconds=1))
    waits, found = Path(folder) / "waits", None
    if rank == 0:
        while not waits.exists():
            time.sleep(0.01)
        time.sleep(3)
        found = "drawn"
    waits.touch()
    assert current_ranks().from_first(found) == "drawn"
    if rank == 0:
        os._exit(0)
    with pytest.raises(RuntimeError):
        current_ranks().from_first(None)
    (Path(folder) / "noticed").touch()
    os._exit(0)


class Watched(StudentForward):
    """The student whose output layer has values only while its forward runs, as under FSDP; outside it has a size."""

    inside = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        layer = model.get_output_embeddings()
        hollow = copy.deepcopy(layer).to("meta")
        model.get_output_embeddings = lambda: layer if self.inside else hollow

    def forward(self, batch: Batch, ids: Tensor, request: StudentRequest = PLAIN) -> LogProbs:
        self.inside = True
        try:
            return super().forward(batch, ids, request)
        finally:
            self.inside = False


@pytest.mark.pitfall(
    "a loss that uses the output layer outside the wrapped module's forward has wrong gradients under DDP and "
    "fails under FSDP",
    area="Scale",
    guard="`adapters/loop/step.py` calls the student, whose forward returns the log-probabilities",
    evidence="the step combines hidden states and output layer itself",
)
@pytest.mark.parametrize("name", ["sft", "opd", "aopd", "gkd", "fkl", "rkl", "eopd", "tropd", "vopd"])
def test_no_loss_reaches_the_output_layer_outside_the_wrapped_forward(name: str, recorder: type[Recorder]):
    student = Watched(qwen3())
    few = {"top_k": 4} if name in ("aopd", "fkl", "tropd") else {}
    make_adapter(name, AdapterEntry(options=few)).train_stage(replace(stage(), student=student))
    assert any(value.any() for value in recorder.made[-1].gradients[0].values())
    assert not student.inside


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path: Path):
    start_together(work, 2, str(tmp_path))
    student = StudentForward(qwen3())
    loss_of(student, ROLLOUTS).backward()
    for rank in range(2):
        assert_same_gradients(torch.load(tmp_path / f"{rank}.pt"), gradients(student), 1e-9)


@pytest.mark.slow
def test_processes_wait_for_the_first_as_long_as_it_works_and_no_longer_than_it_lives(tmp_path: Path):
    start_together(wait_for_a_slow_first_process, 2, str(tmp_path))
    assert (tmp_path / "noticed").exists()


@pytest.mark.slow
def test_a_group_can_be_left_right_after_its_last_collective(tmp_path: Path):
    start_together(leave_many_groups, 2, str(tmp_path))
    expected = {f"left-{rank}-{number}" for rank in range(2) for number in range(GROUPS)}
    assert {file.name for file in tmp_path.glob("left-*")} == expected
