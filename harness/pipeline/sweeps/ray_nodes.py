"""One run over several nodes of a Ray cluster: torchrun on each node, on resources that Ray grants all together.

The task on the first node starts those on the others, follows the run, and forwards its events. When a node or a process is
lost, it ends all of them and its own worker. Ray then starts the task again, and the run continues from its last snapshot.
"""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from harness.config.base import digest
from harness.config.run_spec import RunSpec
from harness.engines.child_processes import free_ports
from harness.errors import InUseError, RunError, StoppedError
from harness.pipeline.processes.stop_signals import ignore_signals
from harness.pipeline.sweeps.node_process import ERROR, EVENTS, SPEC
from harness.rundir.locks import free_lock, is_held
from harness.rundir.process.progress import Event, Report
from harness.rundir.store import LOCK

PAUSE = 0.2  # seconds between two checks
# Seconds for the processes to end their step and write a snapshot. After 30 torchrun itself would kill them, but a step of a
# large model takes minutes, and so does a snapshot of 98 GB.
SHUTDOWN = 1800
PATIENCE = SHUTDOWN + 60.0  # until torchrun, which kills its processes after `SHUTDOWN`, has ended too
FAREWELL = 120.0  # seconds for a snapshot where a node is lost: a notice is seldom longer, and others may wait in vain
NOTICED = 30.0  # seconds within which Ray notices that a node died, and the processes of the others end
LAUNCH = ".launch.lock"  # in a run's folder: held by the task on the first node
PR_SET_PDEATHSIG = 1


class UnsharedError(RunError):
    """A node that does not see the files of the first node."""


def reserve_nodes(ray: Any, nodes: int, options: dict[str, Any]) -> Any:
    """Return a placement group with the resources of a run on each of `nodes` nodes; its tasks wait until Ray grants it."""
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    each = {name: amount for name, amount in asked.items() if amount}
    return ray.util.placement_group([dict(each) for _ in range(nodes)], strategy="STRICT_SPREAD")


def on_node(options: dict[str, Any], group: Any, number: int) -> dict[str, Any]:
    """Return a task's options for node `number` of a placement group."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]

    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
    return {**options, "scheduling_strategy": place}


def run_over_nodes(
    ray: Any, spec: RunSpec, group: Any, options: dict[str, Any], report: Report, environment: Mapping[str, str]
) -> None:
    """Do a run in the processes of all nodes of a placement group; called in a task on the first node.

    This task has set the variables of `environment`; the tasks on the other nodes set them too.
    Raises `InUseError` where another process does the run, `UnsharedError` for a node that does not see the files of this one,
    and the run's own error, from a `StoppedError` where a signal ended it, as when another node is lost and the run stops with
    a snapshot. Ends this worker where a process or a node was lost, so that Ray starts the task again.
    """
    with _only_launch(spec, report) as folder:
        _launch(ray, spec, folder, group, options, report, environment)


@contextmanager
def _only_launch(spec: RunSpec, report: Report) -> Generator[Path]:
    """Yield a new folder for the processes of a run that nobody else does; raises `InUseError` where somebody does it.

    The folder is removed at the end, and those that earlier starts left behind whose node was lost.
    """
    prefix = f".launch-{digest(str(spec.path))}-"
    with free_lock(spec.path / LAUNCH):
        earlier = list(spec.out.glob(f"{prefix}*"))
        # What is left of an earlier start ends by itself, with a snapshot for which it needs its folder.
        until = time.monotonic() + (PATIENCE if earlier else 0)
        if earlier and is_held(spec.path / LOCK):
            report(Event(spec.label, "wait until an earlier start of this run has ended"))
        while is_held(spec.path / LOCK):
            if time.monotonic() >= until:
                raise InUseError(f"{spec.path} is in use by another process; wait for it or choose another --out")
            time.sleep(PAUSE)
        for each in earlier:
            shutil.rmtree(each, ignore_errors=True)
        folder = spec.out / f"{prefix}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _launch(
    ray: Any,
    spec: RunSpec,
    folder: Path,
    group: Any,
    options: dict[str, Any],
    report: Report,
    environment: Mapping[str, str],
) -> None:
    """Start torchrun on all nodes, follow it, and raise what ended it; see `run_over_nodes`."""
    (folder / SPEC).write_bytes(pickle.dumps(spec))
    (folder / EVENTS).touch()
    nodes = len(group.bundle_specs)
    address = f"{ray.util.get_node_ip_address()}:{free_ports()[0]}"
    processes = spec.suite.parallel.processes // nodes
    others: list[Any] = []
    patience = PATIENCE
    try:
        join = ray.remote(_join)
        for number in range(1, nodes):
            own = {**on_node(options, group, number), "max_retries": 0}
            others.append(join.options(**own).remote(folder, address, nodes, number, processes, environment))
        first = _torchrun(folder, address, nodes, 0, processes)
        try:
            with (folder / EVENTS).open("rb") as events:
                while first.poll() is None:
                    _forward_events(events, report)
                    done, _ = ray.wait(others, timeout=PAUSE)
                    if done and first.poll() is None and _is_lost(ray, done):
                        patience = FAREWELL
                        break
                _forward_events(events, report)
        finally:
            _end(first, patience)
        if first.returncode and _lost_a_node(ray, others):
            _restart(folder)
        _raise_failure(folder, first.returncode)
    finally:
        for other in others:
            ray.cancel(other)


def _join(folder: Path, address: str, nodes: int, number: int, processes: int, environment: Mapping[str, str]) -> None:
    """Train with the first node, in processes on this node; a Ray task.

    Raises `UnsharedError` on a node that does not see the launch's folder.
    """
    if not folder.is_dir():
        raise UnsharedError(
            f"node {os.uname().nodename} does not see {folder.parent} as the run's first node does; put --out and "
            f"HARNESS_CACHE on a file system that the {nodes} nodes share, or set resources.nodes to 1"
        )
    os.environ.update(environment)
    process = _torchrun(folder, address, nodes, number, processes)
    try:
        _follow(process, folder)
    finally:
        with ignore_signals():  # a second `ray.cancel` interrupts the worker once more
            if folder.is_dir() and process.poll() is None:
                process.terminate()
                _follow(process, folder, PATIENCE)  # the first process needs this one for its snapshot
            _end(process, NOTICED)
    if process.returncode:
        raise RunError(
            f"the processes of node {number + 1} ended with status {process.returncode}; what they printed is in Ray's "
            "logs on that node, by default in /tmp/ray/session_latest/logs"
        )


def _follow(process: subprocess.Popen[bytes], folder: Path, seconds: float = math.inf) -> None:
    """Wait until the process ends, or the first node has removed the launch's folder."""
    until = time.monotonic() + seconds
    while process.poll() is None and folder.is_dir() and time.monotonic() < until:
        time.sleep(PAUSE)


def _torchrun(folder: Path, address: str, nodes: int, number: int, processes: int) -> subprocess.Popen[bytes]:
    host, _, port = address.rpartition(":")
    words = ["--nnodes", nodes, "--node-rank", number, "--nproc-per-node", processes, "--shutdown-timeout", SHUTDOWN]
    words += ["--master-addr", host, "--master-port", port, "-m", "harness.pipeline.sweeps.node_process", folder]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    return subprocess.Popen(command, preexec_fn=_end_with_this_process)


def _end_with_this_process() -> None:
    """Make Linux send SIGTERM to this process when its parent ends; on other systems do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """End torchrun by SIGTERM, at which its first process writes a snapshot; after `patience` seconds kill all of them."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        launcher = psutil.Process(process.pid)
        for each in [*launcher.children(recursive=True), launcher]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def _forward_events(events: IO[bytes], report: Report) -> None:
    """Report the events that the file holds so far; a half-written one is left for the next call."""
    while True:
        place = events.tell()
        try:
            report(pickle.load(events))
        except (EOFError, pickle.UnpicklingError):
            events.seek(place)
            return


def _is_lost(ray: Any, done: Sequence[Any]) -> bool:
    """Return whether the processes of a node ended with an error; raises the `UnsharedError` of one that could not begin."""
    for task in done:
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UnsharedError):
                raise error.cause from None
            return True
        except Exception:
            return True
    return False


def _lost_a_node(ray: Any, tasks: Sequence[Any]) -> bool:
    """Return whether a node died; where the run itself failed, the processes of all nodes end with a status within seconds.

    The first process may notice that the other side of a connection is gone before Ray notices that a node is.
    """
    done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=NOTICED)
    for task in done:
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError:
            continue
        except Exception:
            return True
    return False


def _restart(folder: Path) -> NoReturn:
    """End this worker: Ray starts a task again when its worker ends."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _raise_failure(folder: Path, status: int) -> None:
    if not status:
        return
    if (folder / ERROR).is_file():
        error, stopped = pickle.loads((folder / ERROR).read_bytes())
        raise error from (StoppedError(str(error)) if stopped else None)
    _restart(folder)  # a process was lost
