"""A sweep on a real Ray cluster of two nodes on this machine equals the serial sweep to the bit, also when a node dies."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec, plan_runs
from harness.config.suite import Suite
from harness.errors import ConfigError, RunError, TaskError
from harness.pipeline.run import run
from harness.pipeline.sweeps.ray_sweep import sweep_on_ray
from harness.rundir.process.progress import Event, silent
from tests.support.models import micro_suite, write_task, write_yaml
from tests.support.runs import cells, manifest

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
# A lost node is noticed after two seconds, not after the usual ten or so.
FAST = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


class Nodes:
    """A cluster of two nodes with one processor each; the driver lives on the first."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's other interfaces may lead nowhere
        self.cluster: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": FAST, "include_dashboard": False}
        )
        self.second: Any = self.cluster.add_node(num_cpus=1)
        self.cluster.wait_for_nodes()
        self.address: str = self.cluster.address

    def kill_second(self) -> None:
        """Kill the second node with all of its workers, as a lost machine does."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def nodes() -> Generator[Nodes]:
    started = Nodes()
    yield started
    started.cluster.shutdown()


def suite(folder: Path, **changes: Any) -> Suite:
    raw = {**micro_suite(), "probes": [], "snapshot_minutes": 0, "adapters": {"opd": {}, "aopd": {}}, **changes}
    raw["training"] = {**raw["training"], "steps": 4}
    return load_suite(str(write_yaml(folder / "suite.yaml", raw)))


def results(specs: list[RunSpec]) -> list[Any]:
    return [(manifest(spec.path)["weights"], cells(spec.path)) for spec in specs]


def test_a_sweep_with_a_node_killed_midway_ends_with_the_serial_results_to_the_bit(nodes: Nodes, tmp_path: Path):
    loaded, entries, seeds = suite(tmp_path), ["opd", "aopd"], [0, 1]
    serial = plan_runs(loaded, entries, seeds, "default", tmp_path / "serial")
    for spec in serial:
        run(spec, silent)
    spread = plan_runs(loaded, entries, seeds, "default", tmp_path / "ray")
    training, killed, finished = set[str](), threading.Event(), list[str]()

    def report(event: Event) -> None:
        if event.activity.startswith("stage") and event.done >= 1:
            training.add(event.run)
        # Each node has one processor, so of two runs that train at once one is on the second node.
        if len(training - set(finished)) == 2 and not killed.is_set():
            killed.set()
            nodes.kill_second()

    sweep_on_ray(spread, nodes.address, report, lambda spec: finished.append(spec.label))
    assert killed.is_set(), "the node was killed while runs were training"
    assert sorted(finished) == sorted(spec.label for spec in spread)
    assert results(spread) == results(serial)
    sessions = [json.loads((spec.path / "manifest.json").read_text())["sessions"] for spec in spread]
    assert sorted(len(each) for each in sessions)[-1] == 2, "the interrupted run continued in a second session"
    assert not list((tmp_path / "ray").glob(".sweep-*"))


def test_an_error_stops_what_has_not_begun_and_is_one_sentence(nodes: Nodes, tmp_path: Path):
    write_task(tmp_path / "tasks", "made_up", grader='raise ValueError("broken grader")')
    loaded = suite(tmp_path, stages=["made_up"], include=["tasks"], teacher=None, adapters={"sft": {}})
    specs = plan_runs(loaded, ["sft"], [0, 1, 2], "default", tmp_path / "ray")
    with pytest.raises(TaskError, match=r"^micro sft seed \d: "):
        sweep_on_ray(specs, nodes.address, silent)
    greedy = plan_runs(suite(tmp_path, resources={"cpus": 64}), ["opd"], [0], "default", tmp_path / "ray")
    with pytest.raises(ConfigError, match="64 CPUs"):
        sweep_on_ray(greedy, nodes.address, silent)


def test_a_node_that_lacks_a_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "site" / "lm_eval"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libmissing.so: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent), prepend=os.pathsep)  # of the workers; this process has lm_eval
    nodes = Nodes()
    try:
        with pytest.raises(RunError, match=r"cannot import .*libmissing\.so.*on every node"):
            sweep_on_ray(plan_runs(suite(tmp_path), ["opd"], [0], "default", tmp_path / "ray"), nodes.address, silent)
    finally:
        nodes.cluster.shutdown()


def test_a_signal_leaves_snapshots_and_the_same_command_continues_to_the_bit(nodes: Nodes, tmp_path: Path):
    loaded = suite(tmp_path)
    (serial,) = plan_runs(loaded, ["opd"], [0], "default", tmp_path / "serial")
    run(serial, silent)
    specs = plan_runs(loaded, ["opd"], [0], "default", tmp_path / "ray")

    def interrupt(event: Event) -> None:
        if event.activity.startswith("stage 1") and event.done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunError, match="stopped by SIGINT; the same command continues"):
        sweep_on_ray(specs, nodes.address, interrupt)
    sweep_on_ray(specs, nodes.address, silent)
    assert results(specs) == results([serial])


def test_one_run_trains_over_two_nodes(nodes: Nodes, tmp_path: Path):
    loaded = suite(tmp_path, adapters={"opd": {}}, stages=["tiny_weather"])
    (alone,) = plan_runs(loaded, ["opd"], [0], "default", tmp_path / "alone")
    run(alone, silent)
    over = suite(
        tmp_path, adapters={"opd": {}}, stages=["tiny_weather"], parallel={"processes": 2}, resources={"nodes": 2}
    )
    (spread,) = plan_runs(over, ["opd"], [0], "default", tmp_path / "ray")
    seen: list[Event] = []
    sweep_on_ray([spread], nodes.address, seen.append)
    assert manifest(spread.path)["finished"]
    found, expected = (
        load_file(next(each.path.glob("stage_1*/train/checkpoint/*.safetensors"))) for each in (spread, alone)
    )
    assert max(float((value - expected[name]).abs().max()) for name, value in found.items()) <= 1e-4
    assert any(event.activity.startswith("stage 1") for event in seen), "the driver shows the run's steps"
    assert not list((tmp_path / "ray").glob(".launch-*"))
    three = suite(tmp_path, parallel={"processes": 3}, resources={"nodes": 3})
    with pytest.raises(ConfigError, match="on 3 of the nodes, and 2 of 2"):
        sweep_on_ray(plan_runs(three, ["opd"], [0], "default", tmp_path / "ray"), nodes.address, silent)


def test_no_cluster_is_one_sentence(tmp_path: Path):
    specs = plan_runs(suite(tmp_path), ["opd"], [0], "default", tmp_path / "ray")
    with pytest.raises(ConfigError, match=r"--ray 127\.0\.0\.1:9: no cluster answers"):
        sweep_on_ray(specs, "127.0.0.1:9", silent)
