"""One run over several nodes of a Ray cluster: torchrun on each, on resources that Ray gives together or not at all.

The first node's task begins the others', follows the run and hands its events on. When a node or a process is lost it ends all
of them and its own worker, so that Ray starts the task again, and the run continues from its last snapshot.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from harness.config.run_spec import RunSpec
from harness.errors import RunError
from harness.pipeline.sweeps.node_process import ERROR, EVENTS, SPEC, Failure
from harness.rundir.process.progress import Report

PAUSE, PATIENCE = 0.2, 120.0  # seconds: between two looks, and for processes that end with a snapshot
PR_SET_PDEATHSIG = 1


def reserve_nodes(ray: Any, nodes: int, options: dict[str, Any]) -> Any:
    """Return a placement group with the resources of a run on each of several nodes; tasks in it wait until it is there."""
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    each = {name: amount for name, amount in asked.items() if amount}
    return ray.util.placement_group([dict(each) for _ in range(nodes)], strategy="STRICT_SPREAD")


def on_node(options: dict[str, Any], group: Any, number: int) -> dict[str, Any]:
    """Return a task's options on one node of a group."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]

    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
    return {**options, "scheduling_strategy": place}


def run_over_nodes(ray: Any, spec: RunSpec, group: Any, options: dict[str, Any], report: Report) -> None:
    """Do a run in the processes of all nodes of a group; called in a task on the first one.

    Raises the run's own error; ends this worker where a process or a node was lost.
    """
    folder = spec.out / f".launch-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    (folder / SPEC).write_bytes(pickle.dumps(spec))
    (folder / EVENTS).touch()
    nodes = len(group.bundle_specs)
    address = f"{ray.util.get_node_ip_address()}:{_free_port()}"
    processes = spec.suite.parallel.processes // nodes
    others: list[Any] = []
    try:
        join = ray.remote(_join)
        for number in range(1, nodes):
            own = {**on_node(options, group, number), "max_retries": 0}
            others.append(join.options(**own).remote(folder, address, nodes, number, processes))
        first = _torchrun(folder, address, nodes, 0, processes)
        try:
            with (folder / EVENTS).open("rb") as events:
                while first.poll() is None:
                    _hand_on(events, report)
                    done, _ = ray.wait(others, timeout=PAUSE)
                    if done and first.poll() is None and _is_lost(ray, done):
                        break
                _hand_on(events, report)
        finally:
            _end(first)
        _raise_failure(folder, first.returncode)
    finally:
        for other in others:
            ray.cancel(other)
        shutil.rmtree(folder, ignore_errors=True)


def _join(folder: Path, address: str, nodes: int, number: int, processes: int) -> None:
    """Train with the first node, in processes of this one; a Ray task."""
    process = _torchrun(folder, address, nodes, number, processes)
    try:
        while process.poll() is None and folder.is_dir():
            time.sleep(PAUSE)
    finally:
        _end(process)
    if process.returncode:
        raise RunError(f"the processes of node {number + 1} ended with status {process.returncode}")


def _torchrun(folder: Path, address: str, nodes: int, number: int, processes: int) -> subprocess.Popen[bytes]:
    host, _, port = address.rpartition(":")
    words = ["--nnodes", nodes, "--node-rank", number, "--nproc-per-node", processes]
    words += ["--master-addr", host, "--master-port", port, "-m", "harness.pipeline.sweeps.node_process", folder]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    return subprocess.Popen(command, preexec_fn=_end_with_this_process)


def _end_with_this_process() -> None:
    """Ask the system to send SIGTERM to this process when the one that starts it ends; Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun, whose first process leaves a snapshot when it gets the signal."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _hand_on(events: IO[bytes], report: Report) -> None:
    for event in _read_events(events):
        report(event)


def _read_events(events: IO[bytes]) -> Iterator[Any]:
    while True:
        place = events.tell()
        try:
            yield pickle.load(events)
        except (EOFError, pickle.UnpicklingError):  # the rest of it is not written yet
            events.seek(place)
            return


def _is_lost(ray: Any, done: Sequence[Any]) -> bool:
    for task in done:
        try:
            ray.get(task)
        except Exception:
            return True
    return False


def _raise_failure(folder: Path, status: int) -> None:
    if not status:
        return
    if (folder / ERROR).is_file():
        failure: Failure = pickle.loads((folder / ERROR).read_bytes())
        raise failure.error
    # Something was lost: Ray starts a task again whose worker ended.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
