"""A sweep on a real Ray cluster of two nodes on this machine equals the serial sweep to the bit, also when a node dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec, plan_runs
from harness.config.suite import Suite
from harness.errors import ConfigError, RunError, TaskError
from harness.pipeline.run import run
from harness.pipeline.sweeps.ray_sweep import sweep_on_ray
from harness.pipeline.sweeps.ray_tasks import answer_of, evaluation_options, task_options
from harness.rundir.process.progress import Event, silent
from tests.support.models import micro_suite, write_task, write_yaml
from tests.support.runs import cells, manifest

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.ray
UNSHARE = ("unshare", "--mount", "--map-root-user")  # mounts of its own, for a process and its children
# A stage of so many steps is still trained when the driver, which sees a step within a second, stops it or kills its node.
LONG = {"training": {"steps": 75}}
# A lost node is noticed after two seconds, not after the usual ten or so.
FAST = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


class Nodes:
    """A cluster of two nodes with one processor each; the driver lives on the first."""

    def __init__(self, driver: int = 1, second: bool = True) -> None:
        from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's other interfaces may lead nowhere
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers wait for all other work of a busy machine
        self.cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": driver, "_system_config": FAST, "include_dashboard": False},
        )
        self.second: Any = self.cluster.add_node(num_cpus=1, wait=False) if second else None
        self.cluster.wait_for_nodes(timeout=300)
        self.address: str = self.cluster.address

    def kill_second(self) -> None:
        """Kill the second node with all of its workers, as a lost machine does."""
        self.cluster.remove_node(self.second, allow_graceful=False)


class NodeApart:
    """A node with one processor and a disk of its own in place of `out`: it shares only other folders with the driver."""

    def __init__(self, address: str, out: Path, disk: Path) -> None:
        disk.mkdir()
        start = f"{sys.executable} -m ray.scripts.scripts start --address {address} --num-cpus 1 --block"
        inside = f"mount --bind {disk} {out} && exec {start}"
        self.process = subprocess.Popen([*UNSHARE, "sh", "-c", inside], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill the node with all of its workers, as a lost machine does."""
        if self.process.poll() is None:
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()


@pytest.fixture
def nodes() -> Generator[Nodes]:
    started = Nodes()
    yield started
    started.cluster.shutdown()


def wait_for(happened: Callable[[], bool], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


def suite(folder: Path, **changes: Any) -> Suite:
    raw = {**micro_suite(), "probes": [], "snapshot_minutes": 0, "adapters": {"opd": {}, "aopd": {}}, **changes}
    raw["training"] = {**micro_suite()["training"], "steps": 4, **changes.get("training", {})}
    return load_suite(str(write_yaml(folder / "suite.yaml", raw)))


def results(specs: list[RunSpec]) -> list[Any]:
    return [(manifest(spec.path)["weights"], cells(spec.path)) for spec in specs]


def test_a_sweep_with_a_node_killed_midway_ends_with_the_serial_results_to_the_bit(nodes: Nodes, tmp_path: Path):
    loaded, entries, seeds = suite(tmp_path, **LONG), ["opd", "aopd"], [0, 1]
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


def is_whole(file: Path) -> bool:
    """Return whether a snapshot's list is written to its end; one that is cut short counts as none."""
    with suppress(OSError, ValueError):
        return bool(json.loads(file.read_text(encoding="utf-8")))
    return False


def test_a_node_that_shares_only_a_store_is_lost_and_another_one_continues_from_its_snapshot(tmp_path: Path):
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("a node with a disk of its own needs mount namespaces")
    changes: dict[str, Any] = {"adapters": {"opd": {}}, "stages": ["tiny_weather"], "training": {"steps": 60}}
    serial = plan_runs(suite(tmp_path, **changes), ["opd"], [0], "default", tmp_path / "serial")
    run(serial[0], silent)
    bucket, out = tmp_path / "bucket", tmp_path / "runs"
    out.mkdir()
    (spec,) = plan_runs(suite(tmp_path, **changes, storage=f"file://{bucket}"), ["opd"], [0], "default", out)
    nodes = Nodes(driver=0, second=False)
    apart = [NodeApart(nodes.address, out, tmp_path / "first")]
    wait_for(lambda: sum(node["Alive"] for node in nodes.cluster.global_state.node_table()) == 2)
    killed, finished, events = threading.Event(), list[str](), list[Event]()

    def replace_node() -> None:
        """Kill the node when the store has a snapshot, and start another one."""
        while not killed.is_set():
            if any(map(is_whole, (bucket / spec.path.relative_to(out)).glob("snapshots/stage_1*/*.json"))):
                apart[0].kill()
                killed.set()
                apart.append(NodeApart(nodes.address, out, tmp_path / "second"))
            time.sleep(0.01)

    replacing = threading.Thread(target=replace_node)
    replacing.start()
    try:
        sweep_on_ray([spec], nodes.address, events.append, lambda spec: finished.append(spec.label))
    finally:
        killed.set()
        replacing.join()
        for node in apart:
            node.kill()
        nodes.cluster.shutdown()
    assert len(apart) == 2, "the node was killed while the run was training"
    assert finished == [spec.label]
    assert results([spec]) == results(serial)
    assert len(manifest(spec.path)["sessions"]) == 2
    steps = [event.done for event in events if event.activity.startswith("stage 1")]
    continued = steps[len(steps) - steps[::-1].index(0) :]  # what follows the last beginning
    assert continued[0] > 1, "the run continued from its snapshot, not from the beginning of its stage"
    assert continued[-1] == 60
    places = [(tmp_path / disk / spec.path.relative_to(out)) for disk in ("first", "second")]
    assert all((place / "stage_1_tiny_weather" / "train").is_dir() for place in places), (
        "each node has a disk of its own"
    )


def test_a_task_keeps_its_processor_while_it_asks_the_board():
    import ray  # pyright: ignore[reportMissingImports]

    def ask(board: Any) -> float:
        answer_of(ray, board.slow_answer.remote())
        return time.time()

    class Slow:
        def slow_answer(self) -> None:
            time.sleep(3)

    nodes = Nodes(second=False)
    try:
        ray.init(nodes.address, log_to_driver=False)
        board = ray.remote(num_cpus=0)(Slow).remote()
        first = ray.remote(ask).remote(board)
        wait_for(lambda: not ray.available_resources().get("CPU"))
        begun = ray.get(ray.remote(lambda: time.time()).remote())
        assert begun >= ray.get(first), "the second task had the processor before the first one had ended"
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


# The second stage lasts longer than a node needs to start what evaluates the first one.
UNEVEN: dict[str, Any] = {
    "adapters": {"opd": {}},
    "stages": [
        {"task": "tiny_weather", "training": {"steps": 10}},
        {"task": "tiny_currency", "training": {"steps": 500}},
    ],
    "snapshot_minutes": 10,
}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The results of a run of two uneven stages, alone."""
    folder = tmp_path_factory.mktemp("uneven")
    (spec,) = plan_runs(suite(folder, **UNEVEN), ["opd"], [0], "default", folder)
    run(spec, silent)
    return results([spec])


@pytest.mark.parametrize("stored", [False, True])
def test_a_stage_is_evaluated_by_another_task_while_the_next_one_trains(
    stored: bool, uneven: list[Any], tmp_path: Path
):
    loaded = suite(tmp_path, **UNEVEN, storage=f"file://{tmp_path}/bucket" if stored else None)
    (spec,) = plan_runs(loaded, ["opd"], [0], "default", tmp_path / "ray")
    nodes, events = Nodes(driver=2, second=False), list[Event]()
    try:
        sweep_on_ray([spec], nodes.address, events.append)
    finally:
        nodes.cluster.shutdown()
    first, second = (f"{stage.index} {stage.name}" for stage in spec.stages)
    seen = [(event.activity, event.done) for event in events]
    trained = [place for place, (activity, _) in enumerate(seen) if activity == f"stage {second}"]
    evaluated = [place for place, (activity, _) in enumerate(seen) if activity == f"evaluate after {first[2:]}"]
    assert any(trained[0] < place < trained[-1] for place in evaluated), "between steps of the next stage"
    assert results([spec]) == uneven


def test_an_evaluation_asks_for_the_share_of_one_process_or_for_its_own(tmp_path: Path):
    options = {"num_cpus": 16, "num_gpus": 8, "max_retries": 5, "memory": 2**40}
    eight = suite(tmp_path, parallel={"processes": 8})
    expected = {"num_cpus": 2, "num_gpus": 1, "max_retries": 0, "memory": 2**37}
    assert evaluation_options(options, eight) == expected
    three = suite(tmp_path, parallel={"processes": 3})
    assert evaluation_options({**options, "num_gpus": 4}, three)["num_gpus"] == 2
    own = suite(tmp_path, parallel={"processes": 8}, resources={"evaluation": {"cpus": 4, "memory_gib": 1}})
    assert evaluation_options(options, own) == expected | {"num_cpus": 4, "memory": 2**30}
    with pytest.raises(ConfigError, match=r"1\.5 GPUs cannot be granted"):
        suite(tmp_path, resources={"evaluation": {"gpus": 1.5}})


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
        with pytest.raises(RunError, match=r"libmissing\.so.*every node"):
            sweep_on_ray(plan_runs(suite(tmp_path), ["opd"], [0], "default", tmp_path / "ray"), nodes.address, silent)
    finally:
        nodes.cluster.shutdown()


def test_a_signal_leaves_snapshots_and_the_same_command_continues_to_the_bit(nodes: Nodes, tmp_path: Path):
    loaded = suite(tmp_path, **LONG)
    (serial,) = plan_runs(loaded, ["opd"], [0], "default", tmp_path / "serial")
    run(serial, silent)
    specs = plan_runs(loaded, ["opd"], [0], "default", tmp_path / "ray")

    interrupted = threading.Event()

    def interrupt(event: Event) -> None:
        if event.activity.startswith("stage 1") and event.done >= 1 and not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunError, match=r"by SIGINT; .*same command continues"):
        sweep_on_ray(specs, nodes.address, interrupt)
    sweep_on_ray(specs, nodes.address, silent)
    assert results(specs) == results([serial])


def test_one_run_trains_over_two_nodes_also_when_one_is_lost(nodes: Nodes, tmp_path: Path):
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

    # With the second node lost midway the run waits for another one and goes on from its snapshot, to the bit.
    # The other process trains on until Ray notices the loss, two seconds later.
    changes: dict[str, Any] = {"parallel": {"processes": 2}, "resources": {"nodes": 2}, "training": {"steps": 120}}
    longer = suite(tmp_path, adapters={"opd": {}}, stages=["tiny_weather"], **changes)
    (here,) = plan_runs(longer, ["opd"], [0], "default", tmp_path / "here")
    run(here, silent)
    (lost,) = plan_runs(longer, ["opd"], [0], "default", tmp_path / "lost")
    killed = threading.Event()

    def kill(event: Event) -> None:
        if event.activity.startswith("stage 1") and event.done >= 2 and not killed.is_set():
            killed.set()
            nodes.kill_second()
            nodes.cluster.add_node(num_cpus=1, wait=False)

    sweep_on_ray([lost], nodes.address, kill)
    assert killed.is_set()
    assert results([lost]) == results([here])
    assert len(json.loads((lost.path / "manifest.json").read_text())["sessions"]) == 2
    assert not list((tmp_path / "lost").glob(".launch-*"))

    three = suite(tmp_path, parallel={"processes": 3}, resources={"nodes": 3})
    with pytest.raises(ConfigError, match=r"on 3 of .*nodes, .*2 of 2"):
        sweep_on_ray(plan_runs(three, ["opd"], [0], "default", tmp_path / "ray"), nodes.address, silent)


def test_a_node_that_shares_no_folder_with_the_first_one_of_its_run_is_named(tmp_path: Path):
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("a node with a disk of its own needs mount namespaces")
    out = tmp_path / "runs"
    out.mkdir()
    changes: dict[str, Any] = {"parallel": {"processes": 2}, "resources": {"nodes": 2}}
    stored = suite(tmp_path, adapters={"opd": {}}, storage=f"file://{tmp_path}/bucket", **changes)
    nodes = Nodes(second=False)
    apart = NodeApart(nodes.address, out, tmp_path / "apart")
    try:
        wait_for(lambda: sum(node["Alive"] for node in nodes.cluster.global_state.node_table()) == 2)
        with pytest.raises(RunError, match=r"^micro opd seed 0: node \S+ does not see .*the 2 nodes share"):
            sweep_on_ray(plan_runs(stored, ["opd"], [0], "default", out), nodes.address, silent)
    finally:
        apart.kill()
        nodes.cluster.shutdown()


def test_a_run_asks_for_a_gpu_for_each_of_its_processes(tmp_path: Path):
    import ray  # pyright: ignore[reportMissingImports]

    started = Nodes(second=False)
    try:
        started.cluster.add_node(num_cpus=1, num_gpus=8)  # Ray counts them; there need not be any
        started.cluster.wait_for_nodes(timeout=300)
        ray.init(address=started.address)

        def gpus(**changes: Any) -> int:
            options = task_options(ray, suite(tmp_path, **changes))
            return len(ray.get(ray.remote(ray.get_gpu_ids).options(**options).remote()))

        assert gpus(device="auto") == 1
        assert gpus(device="auto", parallel={"processes": 8}) == 8
        assert gpus(device="auto", parallel={"processes": 8}, resources={"gpus": 2}) == 2
        assert gpus(device="cpu", parallel={"processes": 8}) == 0
        with pytest.raises(ConfigError, match="8 GPUs"):
            task_options(ray, suite(tmp_path, device="auto", parallel={"processes": 16}, resources={"nodes": 2}))
    finally:
        ray.shutdown()
        started.cluster.shutdown()


def test_no_cluster_is_one_sentence(tmp_path: Path):
    specs = plan_runs(suite(tmp_path), ["opd"], [0], "default", tmp_path / "ray")
    with pytest.raises(ConfigError, match=r"--ray 127\.0\.0\.1:9: no cluster answers"):
        sweep_on_ray(specs, "127.0.0.1:9", silent)
