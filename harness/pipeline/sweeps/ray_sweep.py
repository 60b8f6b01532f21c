"""Many runs on a Ray cluster: models and runs are Ray tasks, and a task whose node dies is started again on another one.

A run's folder is its only state, so a run that is started again continues from its last snapshot or finished stage. Every node
must see the run folder and the model cache under the same paths, on a file system with locks, or the suite names a `storage`
for finished stages. A stage is evaluated by a task of its own while the next one trains, where the cluster has room. Ray is
imported here alone.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.models import Model
from harness.config.run_spec import RunSpec
from harness.config.suite import Resources, Suite
from harness.engines.backend import backend_of
from harness.errors import ConfigError, HarnessError, InUseError, RunError, StoppedError
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of, limit_threads
from harness.pipeline.evaluate_beside import evaluate_beside
from harness.pipeline.processes.started_teachers import started_teachers
from harness.pipeline.processes.stop_signals import note_signals
from harness.pipeline.run import run
from harness.pipeline.sweeps.ray_nodes import on_node, reserve_nodes, run_over_nodes
from harness.pipeline.sweeps.sweep import models_of
from harness.rundir.process.progress import Event, Report
from harness.rundir.shared.remote_stages import RemoteStages
from harness.rundir.training.snapshots import StopRequest

RETRIES = 5  # of a task whose worker or node died
RELEASE_SECONDS = 180.0  # until a lost node's process has let go of its run folder
POLL_SECONDS, CONNECT_SECONDS = 0.2, 10.0
CARRIED = ("HARNESS_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "TOKENIZERS_PARALLELISM", "TQDM_DISABLE")


class Board:
    """An actor that carries the events of all runs to the driver, and the driver's word that no further run may begin."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stopped = False

    def put(self, event: Event) -> None:
        """Add an event."""
        self.events.append(event)

    def take(self) -> list[Event]:
        """Return the events since the last call."""
        taken, self.events = self.events, []
        return taken

    def stop(self) -> None:
        """Let no further run begin."""
        self.stopped = True

    def may_begin(self) -> bool:
        """Whether a run may begin."""
        return not self.stopped


def sweep_on_ray(
    specs: Sequence[RunSpec], address: str, report: Report, on_finished: Callable[[RunSpec], object] = lambda _: None
) -> None:
    """Do all runs on the cluster at `address` (`auto`: the one of this machine).

    The first error lets no further run begin and is raised when the others have ended. Raises `ConfigError` without Ray or a
    cluster, and for a suite that asks for more than any node has.
    """
    ray = _connect(address)
    try:
        with started_teachers([replace(spec, out=spec.out.resolve()) for spec in specs], report) as started:
            _sweep(ray, started, report, on_finished)
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray needs Ray, which is not installed; pip install 'continual-harness[ray]' on every node")
    import ray  # pyright: ignore[reportMissingImports]

    carried = {name: value for name in CARRIED if (value := os.environ.get(name))}
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself waits for minutes where nobody listens
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": carried})
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray {address}: no cluster answers there ({str(error).splitlines()[0]}); start one with `ray start --head`"
        ) from error
    return ray


def _sweep(ray: Any, specs: Sequence[RunSpec], report: Report, on_finished: Callable[[RunSpec], object]) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On the driver's node: the board must not be lost with another one.
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    marker = _marker(specs[0].out)
    try:
        groups: dict[Any, Any] = {}
        pending = _submit(ray, specs, board, marker, groups)
        _drain(ray, pending, board, report, on_finished, groups)
    finally:
        marker.unlink(missing_ok=True)


def _submit(
    ray: Any, specs: Sequence[RunSpec], board: Any, marker: Path, groups: dict[Any, Any]
) -> dict[Any, RunSpec | None]:
    """Queue the models and the runs; a run waits for its models alone. `groups` takes the nodes of runs over several."""
    options = {id(spec): _options(ray, spec.suite) for spec in specs}
    built: dict[str, Any] = {}
    pending: dict[Any, RunSpec | None] = {}
    for spec in specs:
        for key, (_, model, seed) in models_of([spec]).items():
            if key not in built:
                task = ray.remote(_build).options(**options[id(spec)])
                built[key] = task.remote(spec, model, seed, board, marker)
                pending[built[key]] = None
        needed, own, group = [built[key] for key in models_of([spec])], options[id(spec)], None
        if (nodes := (spec.suite.resources or Resources()).nodes) > 1:
            group = reserve_nodes(ray, nodes, own)
            own = on_node(own, group, 0)
        task = ray.remote(_run).options(**own).remote(spec, group, board, marker, *needed)
        pending[task] = spec
        if group is not None:
            groups[task] = group
    return pending


def _options(ray: Any, suite: Suite) -> dict[str, Any]:
    """Return what a task of a suite asks the cluster for; raises `ConfigError` where no node has it."""
    asked = suite.resources or Resources()
    has_gpus = any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"])
    gpus = asked.gpus if asked.gpus is not None else float(has_gpus and suite.device != "cpu")
    wanted = {"CPU": float(asked.cpus), "GPU": gpus, "memory": (asked.memory_gib or 0) * 2**30}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    enough = sum(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes)
    if enough < asked.nodes:
        raise ConfigError(
            f"resources: a run asks for {asked.cpus:g} CPUs, {gpus:g} GPUs and {asked.memory_gib or 0:g} GiB on {asked.nodes} "
            f"of the nodes, and {enough} of {len(nodes)} have that; ask for less, or add a node"
        )
    memory = {"memory": int(wanted["memory"])} if asked.memory_gib else {}
    return {"num_cpus": asked.cpus, "num_gpus": gpus, "max_retries": RETRIES, **memory}


def _build(spec: RunSpec, model: Model, seed: int, board: Any, marker: Path) -> None:
    """Build a model in the shared cache; a Ray task."""
    _prepare(spec, marker)
    put, label = _putter(board), f"model seed {seed}"
    library = TaskLibrary(spec.suite.include, spec.suite.data)
    checkpoint_of(model, seed, library, lambda what, done, total: put(Event(label, f"build {what}", done, total)))
    put(Event(label, "built", 1, 1, finished=True))


def _run(spec: RunSpec, group: Any, board: Any, marker: Path, *_models: None) -> bool:
    """Do a run, or what is left of it; a Ray task. Returns False where the sweep was stopped before it began.

    `group` holds the nodes of a run over several.
    """
    import ray  # pyright: ignore[reportMissingImports]

    if not ray.get(board.may_begin.remote()):
        return False
    _prepare(spec, marker)
    until = time.monotonic() + RELEASE_SECONDS
    begun: list[Any] = []
    while True:
        try:
            if group is not None:
                run_over_nodes(ray, spec, group, _options(ray, spec.suite), _putter(board))
            else:
                run(spec, _putter(board), partial(_begin_evaluation, ray, board, marker, begun))
            return True
        except InUseError:
            # The process of a lost node may live on for some seconds, and then the folder is its own.
            if time.monotonic() > until:
                raise
            time.sleep(1)
        except RunError as error:
            if isinstance(error.__cause__, StoppedError) and ray.get(board.may_begin.remote()):
                # The sweep goes on, so this node is being taken away: Ray starts a task again whose worker ended.
                os._exit(1)
            raise


def _begin_evaluation(ray: Any, board: Any, marker: Path, begun: list[Any], spec: RunSpec, stage: int) -> bool:
    """Begin to evaluate a finished stage in a task of its own, where the cluster has room for one more."""
    backend = backend_of(spec.suite)
    # Nodes without a common file system do not see the checkpoint; a shared engine holds one set of weights.
    if spec.suite.storage is not None or backend.is_shared:
        return False
    options, free = _options(ray, spec.suite), ray.available_resources()
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    if any(free.get(name, 0) < amount for name, amount in asked.items()):
        return False
    begun.append(ray.remote(_evaluate).options(**{**options, "max_retries": 0}).remote(spec, stage, board, marker))
    return True


def _evaluate(spec: RunSpec, stage: int, board: Any, marker: Path) -> None:
    """Evaluate a finished stage; a Ray task. What it leaves, the run does."""
    _prepare(spec, marker)
    evaluate_beside(spec, stage, _putter(board))


def _prepare(spec: RunSpec, marker: Path) -> None:
    limit_threads(spec.suite.threads or max(1, int((spec.suite.resources or Resources()).cpus)))
    if spec.suite.storage is not None:
        return
    if not marker.is_file():
        raise RunError(
            f"node {os.uname().nodename} does not see {marker.parent}; put --out and HARNESS_CACHE on a file system that all "
            "nodes share, or name a `storage` for finished stages"
        )
    # Relative paths of models and caches are those of the driver.
    with suppress(OSError):
        os.chdir(marker.read_text(encoding="utf-8"))


def _putter(board: Any) -> Report:
    """Return what sends events to the driver without waiting for it."""

    def put(event: Event) -> None:
        with suppress(Exception):  # a display that cannot be reached must not end a run
            board.put.remote(event)

    return put


def _drain(
    ray: Any,
    pending: dict[Any, RunSpec | None],
    board: Any,
    report: Report,
    on_finished: Callable[[RunSpec], object],
    groups: dict[Any, Any],
) -> None:
    failure: BaseException | None = None
    request = StopRequest()
    with note_signals(request):
        while pending:
            if request.signal and failure is None:
                failure = RunError(f"stopped by {request.signal}; the same command continues")
                ray.get(board.stop.remote())
                for task in pending:
                    ray.cancel(task)  # as SIGINT in its worker, so a run leaves a snapshot
            done, _ = ray.wait(list(pending), timeout=POLL_SECONDS)
            for event in ray.get(board.take.remote()):
                report(event)
            for task in done:
                spec = pending.pop(task)
                if (group := groups.pop(task, None)) is not None:
                    ray.util.remove_placement_group(group)  # which ends the workers in it
                try:
                    finished = ray.get(task)
                except Exception as error:
                    failure = failure or _explained(ray, error, spec)
                    ray.get(board.stop.remote())
                else:
                    if finished and spec is not None:
                        RemoteStages(spec.suite.storage, spec.path, spec.out).fetch()
                        on_finished(spec)
    if failure is not None:
        raise failure


def _explained(ray: Any, error: Exception, spec: RunSpec | None) -> BaseException:
    """Return the error that a task raised, or a sentence about its worker's or node's death."""
    cause: BaseException = error
    while isinstance(cause, ray.exceptions.RayTaskError):  # one for each task that handed the error on
        cause = cause.cause  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(cause, HarnessError):
        return type(cause)(f"{spec.label}: {cause}" if spec else str(cause))
    if isinstance(error, ray.exceptions.RayTaskError):
        return cause
    return RunError(
        f"{spec.label if spec else 'a model'}: its worker or node died {RETRIES + 1} times, most often because memory ran out "
        f"({type(error).__name__}); ask for more under `resources`, the same command continues from the last snapshots"
    )


def _marker(out: Path) -> Path:
    """Write a file by which a node knows that it sees the driver's folder; it holds the driver's current folder."""
    out.mkdir(parents=True, exist_ok=True)
    marker = out / f".sweep-{uuid.uuid4().hex}"
    marker.write_text(str(Path.cwd()), encoding="utf-8")
    return marker
