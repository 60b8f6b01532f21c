"""The tasks of a sweep on Ray, called without a cluster: what they do on the node that they run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.pipeline.sweeps import ray_tasks
from harness.rundir.process.progress import Event


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_model_is_built_on_the_device_on_which_its_runs_look_for_it(
    gpu: bool, device: str, micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    devices: list[str] = []

    def checkpoint_of(*arguments: Any) -> None:
        devices.append(arguments[-1])

    monkeypatch.setattr("harness.pipeline.build.model_source.checkpoint_of", checkpoint_of)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marker").write_text(str(tmp_path), encoding="utf-8")
    spec = RunSpec(micro.model_copy(update={"device": "auto"}), "opd", 0, out=tmp_path)
    ray_tasks.build_model(spec, spec.suite.student, 0, board=None, marker=tmp_path / "marker")
    assert devices == [device]


class Messages:
    """Stands for an actor's handle: what a task sends, message by message."""

    def __init__(self) -> None:
        self.put, self.sent = self, list[list[Event]]()

    def remote(self, events: list[Event]) -> None:
        self.sent.append(events)


def test_fast_steps_share_a_message_and_whatever_else_happens_is_sent_at_once():
    board = Messages()
    report = ray_tasks._putter(board)
    steps = [Event("run", "stage 1", number, 1001) for number in range(1001)]
    others = [
        Event("run", "evaluate", 0, 9),
        Event("run", "careful", warning=True),
        Event("run", "done", 1, 1, finished=True),
    ]
    for event in steps:
        report(event)
    assert board.sent[0] == steps[:1], "the beginning of an activity is sent at once"
    assert len(board.sent) < 100
    for event in others:
        report(event)
        assert board.sent[-1][-1] == event
    assert [event for events in board.sent for event in events] == [*steps, *others]
