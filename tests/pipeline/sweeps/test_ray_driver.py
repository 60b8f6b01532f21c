"""The driver of a sweep on Ray, without a cluster: what it asks of Ray, and what it does when tasks end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config.run_spec import RunSpec
from harness.config.suite import Resources, Suite
from harness.errors import RunError
from harness.pipeline.sweeps import ray_sweep, ray_tasks
from harness.pipeline.sweeps.sweep import models_of
from harness.rundir.process.progress import silent
from harness.rundir.shared.remote_stages import RemoteStages
from tests.support.runs import changed_suite


@dataclass(frozen=True, eq=False)
class Task:
    """A call that Ray has been asked for."""

    function: Any
    arguments: tuple[Any, ...]


class Cluster:
    """Stands for Ray: tasks end well, one after another, in the order in which they were asked for."""

    exceptions = SimpleNamespace(RayTaskError=RuntimeError)

    def __init__(self) -> None:
        self.asked, self.ended = list[Task](), list[Task]()
        self.util = SimpleNamespace(remove_placement_group=lambda _: None)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 16}}] * 2

    def remote(self, function: Any = None, **_: Any) -> Any:
        if function is None:
            return lambda actor: SimpleNamespace(remote=lambda: Actor(actor()))
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *given: self._ask(function, given)))

    def _ask(self, function: Any, given: tuple[Any, ...]) -> Task:
        self.asked.append(task := Task(function, given))
        return task

    def wait(self, tasks: list[Task], timeout: float) -> tuple[list[Task], list[Task]]:
        self.ended.append(tasks[0])
        return tasks[:1], tasks[1:]

    def get(self, answer: Any) -> Any:
        return answer.function is ray_tasks.do_run if isinstance(answer, Task) else answer


class Actor:
    """Stands for an actor's handle: a call answers at once."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.actor, name))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(ray_sweep, "on_this_node", lambda _: None)
    return Cluster()


def runs(suite: Suite, out: Path, seeds: int) -> list[RunSpec]:
    return [RunSpec(suite, "opd", seed, out=out) for seed in range(seeds)]


def ended_runs(cluster: Cluster) -> list[int]:
    """Return the seeds of the runs that the driver has waited for, in order."""
    return [task.arguments[0].seed for task in cluster.ended if task.function is ray_tasks.do_run]


@pytest.mark.parametrize("what", ["fetch", "report"])
def test_a_fetch_or_a_report_that_fails_is_raised_when_the_other_runs_have_ended(
    what: str, cluster: Cluster, micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    handled: list[int] = []

    def handle(spec: RunSpec, step: str) -> None:
        if step == what:
            handled.append(spec.seed)
            if spec.seed == 0:
                raise RunError(f"no {what}")

    monkeypatch.setattr(RemoteStages, "fetch", lambda self: handle(self.spec, "fetch"))
    with pytest.raises(RunError, match=f"^no {what}$"):
        ray_sweep._sweep(cluster, runs(micro, tmp_path, 3), silent, lambda spec: handle(spec, "report"))
    assert ended_runs(cluster) == [0, 1, 2]
    assert handled == [0, 1, 2]
    board = next(task for task in cluster.asked if task.function is ray_tasks.do_run).arguments[3].board
    assert not board.actor.may_begin(), "no further run begins"


def test_the_workers_get_the_keys_of_all_teachers_that_the_suite_names(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def server(key: str) -> dict[str, Any]:
        return {
            "kind": "server",
            "urls": ["http://node1:8000"],
            "model": "t",
            "max_logprobs": 32,
            "api_key_variable": key,
        }

    cached = {"kind": "cache", "path": "scores.db", "of": server("KEY_BEHIND")}
    routed = {"kind": "routed", "by_task": {"tiny_weather": cached}, "otherwise": server("KEY_OTHERWISE")}
    own = {"task": "tiny_currency", "teacher": server("KEY_OF_STAGE")}
    suite = changed_suite(tmp_path, lambda raw: raw.update(teacher=routed, stages=["tiny_weather", own]))
    names = ("KEY_BEHIND", "KEY_OTHERWISE", "KEY_OF_STAGE")
    for name in (*names, "KEY_OF_ANOTHER"):
        monkeypatch.setenv(name, f"secret of {name}")
    ray_sweep._sweep(cluster, runs(suite, tmp_path / "runs", 1), silent, lambda _: None)
    driver = next(task for task in cluster.asked if task.function is ray_tasks.do_run).arguments[3]
    assert {name: f"secret of {name}" for name in names}.items() <= driver.environment.items()
    assert "KEY_OF_ANOTHER" not in driver.environment
    assert "secret" not in repr(driver)
    written = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert not any("secret" in file.read_text() for file in written)


def test_the_nodes_of_a_run_are_reserved_when_its_models_are_built(
    cluster: Cluster, micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nodes that are reserved earlier could be those on which the models are to be built, and both would wait for ever."""
    suite = micro.model_copy(update={"resources": Resources(nodes=2)})
    specs, finished, built_at_reservation = runs(suite, tmp_path, 2), list[int](), list[int]()

    def reserve(*_: Any) -> str:
        built_at_reservation.append(sum(task.function is ray_tasks.build_model for task in cluster.ended))
        return "group"

    monkeypatch.setattr(ray_sweep, "reserve_nodes", reserve)
    monkeypatch.setattr(ray_sweep, "on_node", lambda options, *_: options)
    ray_sweep._sweep(cluster, specs, silent, lambda spec: finished.append(spec.seed))
    assert finished == [0, 1]
    models = len(models_of(specs[:1])), len(models_of(specs))
    assert models == tuple(built_at_reservation)


def test_no_nodes_are_reserved_after_an_error(
    cluster: Cluster, micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite = micro.model_copy(update={"resources": Resources(nodes=2)})
    reserved: list[Any] = []
    monkeypatch.setattr(ray_sweep, "reserve_nodes", lambda *given: reserved.append(given))

    def get(answer: Any) -> Any:
        if isinstance(answer, Task):
            raise ConnectionError("the worker is gone")
        return answer

    monkeypatch.setattr(cluster, "get", get)
    with pytest.raises(RunError, match="died"):
        ray_sweep._sweep(cluster, runs(suite, tmp_path, 2), silent, lambda _: None)
    assert reserved == []
