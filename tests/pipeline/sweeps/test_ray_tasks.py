"""The tasks of a sweep on Ray, called without a cluster: what they do on the node that they run on."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest
import torch
from torch.distributed.run import parse_args as torchrun_arguments

from harness.config.base import digest
from harness.config.run_spec import RunSpec
from harness.config.suite import Resources, Suite
from harness.errors import ConfigError, InUseError, RunError
from harness.pipeline.sweeps import ray_nodes, ray_tasks
from harness.pipeline.sweeps.ray_sweep import refuse_teachers_on_offered_gpus
from harness.rundir.process.progress import Event
from harness.rundir.store import RunStore
from tests.support.runs import changed_suite


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_model_is_built_in_the_drivers_environment_on_the_device_on_which_its_runs_look_for_it(
    gpu: bool, device: str, micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    built: list[tuple[str, str]] = []

    def checkpoint_of(*arguments: Any) -> None:
        built.append((arguments[-1], os.environ["HF_HOME"]))

    monkeypatch.setattr("harness.pipeline.build.model_source.checkpoint_of", checkpoint_of)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "the node's own")
    (marker := tmp_path / "marker").write_text(str(tmp_path), encoding="utf-8")
    spec = RunSpec(micro.model_copy(update={"device": "auto"}), "opd", 0, out=tmp_path)
    ray_tasks.build_model(spec, spec.suite.student, 0, ray_tasks.Driver(None, marker, {"HF_HOME": "the driver's"}))
    assert built == [(device, "the driver's")]


def test_the_processes_of_another_node_get_the_drivers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def torchrun(*_: Any) -> subprocess.Popen[bytes]:
        seen.append(os.environ["HF_HOME"])
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(ray_nodes, "_torchrun", torchrun)
    monkeypatch.setenv("HF_HOME", "the node's own")
    ray_nodes._join(tmp_path, "host:1", 2, 1, 1, {"HF_HOME": "the driver's"})
    assert seen == ["the driver's"]


def test_a_signal_leaves_half_an_hour_for_a_step_and_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    ray_nodes._torchrun(tmp_path, "host:1", 2, 1, 8)
    timeout = torchrun_arguments(commands[0][3:]).shutdown_timeout  # torchrun's own default is 30 seconds
    assert timeout is not None
    assert 1800 <= timeout < ray_nodes.PATIENCE


# Two processes that ignore SIGTERM, as the ranks of a training do; the first one stands for torchrun.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
child.stdout.read(1)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""


def test_processes_on_another_node_end_soon_after_the_first_node_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    launch, child = tmp_path / "launch", tmp_path / "child"
    launch.mkdir()
    started: list[subprocess.Popen[bytes]] = []

    def torchrun(*_: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", STUBBORN, str(child)]))
        while not (child.is_file() and child.read_text()):
            time.sleep(0.02)
        launch.rmdir()  # the first node removes it at its end
        return started[0]

    monkeypatch.setattr(ray_nodes, "_torchrun", torchrun)
    monkeypatch.setattr(ray_nodes, "NOTICED", 0.5)
    monkeypatch.setattr(ray_nodes, "PATIENCE", 3.0)
    with pytest.raises(RunError, match="node 2 ended with status -9"):
        ray_nodes._join(launch, "host:1", 2, 1, 1, {})
    until = time.monotonic() + 30
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(int(child.read_text())).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_processes_on_another_node_stay_for_the_snapshot_of_a_run_that_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A rank that ignores the signal, and ends when the first one has its snapshot.
    waits = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(2)"
    started: list[subprocess.Popen[bytes]] = []

    def torchrun(*_: Any) -> subprocess.Popen[bytes]:
        started.append(process := subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE))
        assert process.stdout
        process.stdout.read(1)
        end = process.terminate

        def terminate() -> None:
            end()
            _thread.interrupt_main()  # Ray interrupts the task once more, for the first node

        monkeypatch.setattr(process, "terminate", terminate)
        threading.Timer(0.3, _thread.interrupt_main).start()  # and before that for the driver
        return process

    monkeypatch.setattr(ray_nodes, "_torchrun", torchrun)
    monkeypatch.setattr(ray_nodes, "NOTICED", 0.5)
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            ray_nodes._join(tmp_path, "host:1", 2, 1, 1, {})
    finally:
        signal.signal(signal.SIGINT, found)
    assert started[0].poll() == 0, "it ended by itself"


class TwoNodes:
    """Stands for Ray in the task on the first node of two; what the task on the other node returns never arrives."""

    exceptions = SimpleNamespace(RayTaskError=RuntimeError)
    util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    group = SimpleNamespace(bundle_specs=[{}, {}])

    def remote(self, function: Any) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: function))

    def wait(self, tasks: list[Any], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        time.sleep(0.05)
        return [], tasks

    def cancel(self, task: Any) -> None:
        pass


TRAINS = """
import pathlib, sys, time
until = time.monotonic() + 60
while not pathlib.Path(sys.argv[1]).exists() and time.monotonic() < until:
    time.sleep(0.02)
"""


@pytest.fixture
def over_nodes(micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunSpec, Callable[[], None]]:
    """A run over two nodes, and a function that does it: its torchrun ends when the file `trained` is next to the run."""
    monkeypatch.setattr(ray_nodes, "on_node", lambda options, *_: options)
    spec = RunSpec(micro, "opd", 0, out=tmp_path / "runs")
    ends = [sys.executable, "-c", TRAINS, str(spec.out / "trained")]
    monkeypatch.setattr(ray_nodes, "_torchrun", lambda *_: subprocess.Popen(ends))
    return spec, lambda: ray_nodes.run_over_nodes(TwoNodes(), spec, TwoNodes.group, {}, lambda _: None, {})


def launches(spec: RunSpec) -> list[Path]:
    return list(spec.out.glob(".launch-*"))


def wait_for_launch(spec: RunSpec, but: Sequence[Path] = ()) -> Path:
    """Return the launch folder that is not in `but`, as soon as there is one."""
    until = time.monotonic() + 60
    while not (found := [folder for folder in launches(spec) if folder not in but]):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found[0]


def test_a_second_sweep_leaves_a_run_over_nodes_alone_that_the_first_one_does(
    over_nodes: tuple[RunSpec, Callable[[], None]],
):
    spec, do = over_nodes
    first = threading.Thread(target=do)
    first.start()
    try:
        folder = wait_for_launch(spec)
        with pytest.raises(InUseError, match="in use by another process"):
            do()
        assert folder.is_dir()
        assert launches(spec) == [folder]
    finally:
        (spec.out / "trained").touch()
        first.join()
    assert launches(spec) == []
    do()


def test_a_run_over_nodes_that_a_command_without_ray_does_is_refused(over_nodes: tuple[RunSpec, Callable[[], None]]):
    spec, do = over_nodes
    with RunStore(spec.path).locked(), pytest.raises(InUseError, match="in use by another process"):
        do()
    assert launches(spec) == []


def test_what_is_left_of_a_lost_start_keeps_its_folder_until_it_has_its_snapshot(
    over_nodes: tuple[RunSpec, Callable[[], None]],
):
    spec, do = over_nodes
    (left := spec.out / f".launch-{digest(str(spec.path))}-left").mkdir(parents=True)
    begun = threading.Thread(target=do)
    with RunStore(spec.path).locked():  # as the run's first process, whose task on Ray was lost
        begun.start()
        time.sleep(1)
        assert launches(spec) == [left]
    wait_for_launch(spec, but=[left])
    assert left not in launches(spec)
    (spec.out / "trained").touch()
    begun.join()
    assert launches(spec) == []


class TaskFailureError(Exception):
    """Stands for Ray's error about a task, `cause` for what the task raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class TwoDisks(TwoNodes):
    """The second node does not see the launch's folder."""

    exceptions = SimpleNamespace(RayTaskError=TaskFailureError)

    def remote(self, function: Any) -> Any:
        def begin(folder: Path, *arguments: Any) -> Any:
            return lambda: function(folder.parent / "elsewhere" / folder.name, *arguments)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=begin))

    def wait(self, tasks: list[Any], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        time.sleep(0.05)
        return tasks, []

    def get(self, task: Any) -> None:
        try:
            task()
        except Exception as error:
            raise TaskFailureError(error) from error


def test_a_node_that_does_not_see_the_files_of_the_first_one_is_named(
    over_nodes: tuple[RunSpec, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
):
    def end(_: int) -> NoReturn:
        raise AssertionError("Ray starts the task again, in vain")

    monkeypatch.setattr(os, "_exit", end)
    spec, _ = over_nodes
    with pytest.raises(
        RunError, match=f"node {os.uname().nodename} does not see .* the 2 nodes share, or set resources"
    ):
        ray_nodes.run_over_nodes(TwoDisks(), spec, TwoNodes.group, {}, lambda _: None, {})
    assert launches(spec) == []


class Cluster:
    """Stands for Ray where a task asks what the nodes have: two nodes of 8 GPUs."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 16, "GPU": 8}}] * 2


@pytest.mark.parametrize(
    ("spread", "processes", "resources", "gpus"),
    [
        (2, 1, {}, 2),
        (2, 8, {}, 8),
        (2, 1, {"gpus": 1}, 1),
        (1, 8, {"nodes": 2}, 4),
        (8, 8, {"nodes": 2}, 8),
    ],
)
def test_a_task_asks_for_the_gpus_over_which_its_backend_spreads_a_model(
    micro: Suite,
    monkeypatch: pytest.MonkeyPatch,
    spread: int,
    processes: int,
    resources: dict[str, Any],
    gpus: int,
):
    monkeypatch.setattr(Suite, "engine", SimpleNamespace(tensor_parallel_size=spread))
    parallel = micro.parallel.model_copy(update={"processes": processes})
    asked = Resources.model_validate(resources)
    suite = micro.model_copy(update={"device": "auto", "parallel": parallel, "resources": asked})
    options = ray_tasks.task_options(Cluster(), suite)
    assert options["num_gpus"] == gpus
    if asked.gpus is None:
        assert ray_tasks.evaluation_options(options, suite)["num_gpus"] == spread
    on_cpu = micro.model_copy(
        update={"device": "cpu", "parallel": parallel, "resources": asked.model_copy(update={"gpus": None})}
    )
    assert ray_tasks.task_options(Cluster(), on_cpu)["num_gpus"] == 0


def test_a_teacher_on_gpus_that_ray_gives_to_runs_is_refused(tmp_path: Path):
    server = {"kind": "server", "model": "t", "start": {"gpus": ["0,1"]}}
    suite = changed_suite(tmp_path, lambda raw: raw.update(teacher=server))
    with pytest.raises(ConfigError, match=r"start\.gpus .*--num-gpus 0"):
        refuse_teachers_on_offered_gpus([RunSpec(suite, "opd", 0)], 8)
    refuse_teachers_on_offered_gpus([RunSpec(suite, "opd", 0)], 0)
    refuse_teachers_on_offered_gpus([RunSpec(suite, "sft", 0)], 8)  # it uses no teacher, so none is started


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
