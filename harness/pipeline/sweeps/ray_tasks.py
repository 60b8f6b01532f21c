"""The Ray tasks of a sweep: build a model, do a run, evaluate a finished stage; and the actor that carries their events.

Ray imports this module on every node. A run's folder is its only state, so a run whose task is started again continues from
its last snapshot or finished stage. What only runs need is imported in the tasks: the driver and the actor start seconds
earlier without it, and it may read the environment, which a task sets first.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.models import Model
from harness.config.run_spec import RunSpec
from harness.config.suite import EvaluationResources, Resources, Suite
from harness.engines.backend import backend_of
from harness.errors import ConfigError, InUseError, RunError, StoppedError
from harness.pipeline.sweeps.ray_nodes import run_over_nodes
from harness.rundir.process.progress import Event, Report

RETRIES = 5  # of a task whose worker or node died
SEND_SECONDS = 0.5  # between two messages about the steps of one activity
RELEASE_SECONDS = 180.0  # until the process of a lost node has released its run folder


@dataclass(frozen=True)
class Driver:
    """What a task knows of the sweep that it belongs to.

    - `board`: the sweep's `Board`.
    - `marker`: a file by which a node knows that it sees the driver's run folder; it holds the driver's current folder.
    - `environment`: the driver's variables that name caches and access to the hub, and its keys for teachers. Ray's
      `runtime_env` could carry them, but then each node starts a new process although one is ready.
    """

    board: Any
    marker: Path
    environment: Mapping[str, str] = field(repr=False)  # a token is never printed


class Board:
    """An actor on the driver's node: tasks put events on it, and ask it whether the sweep still begins runs."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stopped = False

    def put(self, events: list[Event]) -> None:
        """Add events."""
        self.events += events

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


def task_options(ray: Any, suite: Suite) -> dict[str, Any]:
    """Return the resources that a task of a suite requests; raises `ConfigError` where too few nodes have them."""
    asked = suite.resources or Resources()
    has_gpus = any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"])
    uses_gpus = has_gpus and suite.device != "cpu"
    gpus = asked.gpus if asked.gpus is not None else suite.gpus_on_a_node(asked.nodes) * uses_gpus
    needed = {"CPU": float(asked.cpus), "GPU": gpus, "memory": (asked.memory_gib or 0) * 2**30}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    enough = sum(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes)
    if enough < asked.nodes:
        raise ConfigError(
            f"resources: a run asks for {asked.cpus:g} CPUs, {gpus:g} GPUs and {asked.memory_gib or 0:g} GiB on {asked.nodes} "
            f"of the nodes, and {enough} of {len(nodes)} have that; ask for less, or add a node"
        )
    memory = {"memory": int(needed["memory"])} if asked.memory_gib else {}
    return {"num_cpus": asked.cpus, "num_gpus": gpus, "max_retries": RETRIES, **memory}


def evaluation_options(options: dict[str, Any], suite: Suite) -> dict[str, Any]:
    """Return what a task requests that evaluates a stage of a run with these `options`; it is not started a second time."""
    asked = suite.resources or Resources()
    own, share = asked.evaluation or EvaluationResources(), suite.parallel.processes // asked.nodes
    spread = suite.gpus_on_a_node(suite.parallel.processes)  # what an engine of one process uses
    gpus = max(options["num_gpus"] / share, spread if spread > 1 and options["num_gpus"] else 0)
    memory = own.memory_gib * 2**30 if own.memory_gib else options.get("memory", 0) / share
    return {
        "num_cpus": options["num_cpus"] / share if own.cpus is None else own.cpus,
        # Ray grants parts of one GPU, but not parts of several.
        "num_gpus": (math.ceil(gpus) if gpus > 1 else gpus) if own.gpus is None else own.gpus,
        "max_retries": 0,
        **({"memory": int(memory)} if memory else {}),
    }


def build_model(spec: RunSpec, model: Model, seed: int, driver: Driver) -> None:
    """Build a model in the shared cache, on the device that the run uses; a Ray task."""
    _prepare(spec, driver)
    from harness.lmeval.library import TaskLibrary
    from harness.pipeline.build.model_source import checkpoint_of
    from harness.pipeline.processes.devices import working_device

    put, label = _putter(driver.board), f"model seed {seed}"
    library, device = TaskLibrary(spec.suite.include, spec.suite.data), working_device(spec.suite.device)
    checkpoint_of(
        model, seed, library, lambda what, done, total: put(Event(label, f"build {what}", done, total)), device
    )
    put(Event(label, "built", 1, 1, finished=True))


def do_run(spec: RunSpec, options: dict[str, Any], group: Any, driver: Driver, *_models: None) -> bool:
    """Do a run, or the rest of an interrupted one; a Ray task. Returns False where the sweep stopped before the run began.

    `options` are the resources that it asks for on each node, `group` the placement group of a run over several nodes, else
    None.
    """
    import ray  # pyright: ignore[reportMissingImports]

    if not answer_of(ray, driver.board.may_begin.remote()):
        return False
    _prepare(spec, driver)
    from harness.pipeline.run import run

    until = time.monotonic() + RELEASE_SECONDS
    begun: list[Any] = []
    while True:
        try:
            if group is not None:
                run_over_nodes(ray, spec, group, options, _putter(driver.board), driver.environment)
            else:
                run(spec, _putter(driver.board), partial(_begin_evaluation, ray, options, driver, begun))
                for evaluation in begun:
                    ray.cancel(evaluation)  # one that still waits for a place has nothing left to do
            return True
        except InUseError:
            # The process of a lost node may live on for some seconds and hold the folder.
            if time.monotonic() > until:
                raise
            time.sleep(1)
        except RunError as error:
            if isinstance(error.__cause__, StoppedError) and answer_of(ray, driver.board.may_begin.remote()):
                # The sweep goes on, so this node is being taken away. Ray restarts a task whose worker has ended.
                os._exit(1)
            raise


def answer_of(ray: Any, question: Any) -> Any:
    """Return an actor's answer to a question that was put to it.

    While a task's main thread waits for an answer, Ray gives the task's processors to other tasks, so another thread waits.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(ray.get, question).result()


def _begin_evaluation(
    ray: Any, options: dict[str, Any], driver: Driver, begun: list[Any], spec: RunSpec, stage: int
) -> bool:
    """Start the evaluation of a finished stage as a task of its own, where the cluster has room for one more."""
    if backend_of(spec.suite).is_shared:  # its engine holds one set of weights
        return False
    options, free = evaluation_options(options, spec.suite), ray.available_resources()
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    if any(free.get(name, 0) < amount for name, amount in asked.items()):
        return False
    if spec.suite.storage is not None:  # only this node has the checkpoint
        options |= {"scheduling_strategy": on_this_node(ray)}
    begun.append(ray.remote(_evaluate).options(**options).remote(spec, stage, driver))
    return True


def on_this_node(ray: Any) -> Any:
    """Return the scheduling strategy that keeps a task or an actor on the caller's node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _evaluate(spec: RunSpec, stage: int, driver: Driver) -> None:
    """Evaluate a finished stage; a Ray task. The run evaluates what this task leaves out."""
    _prepare(spec, driver)
    from harness.pipeline.background_evaluation import evaluate_in_background

    evaluate_in_background(spec, stage, _putter(driver.board))


def _prepare(spec: RunSpec, driver: Driver) -> None:
    """Take the driver's environment and current folder, and limit this worker's threads.

    Call it before any import that reads the environment. Raises `RunError` on a node that does not see the
    driver's files.
    """
    os.environ.update(driver.environment)
    from harness.pipeline.processes.devices import limit_threads

    limit_threads(spec.suite.threads or max(1, int((spec.suite.resources or Resources()).cpus)))
    if spec.suite.storage is not None:
        return
    if not driver.marker.is_file():
        raise RunError(
            f"node {os.uname().nodename} does not see {driver.marker.parent}; put --out and HARNESS_CACHE on a file system "
            "that all nodes share, or name a `storage` for finished stages"
        )
    # Relative paths of models and caches are relative to the driver's folder.
    with suppress(OSError):
        os.chdir(driver.marker.read_text(encoding="utf-8"))


def _putter(board: Any) -> Report:
    """Return a report that sends events to the driver without waiting for it.

    A step within `SEND_SECONDS` of the last message waits for the next one: a message takes a millisecond of processor time,
    and a small model's step a few.
    """
    held: list[Event] = []
    sent, one_at_a_time = 0.0, threading.Lock()

    def put(event: Event) -> None:
        nonlocal sent
        with one_at_a_time:
            held.append(event)
            if 0 < event.done < (event.total or 0) and time.monotonic() - sent < SEND_SECONDS:
                return
            with suppress(Exception):  # an event that is not delivered must not end a run
                board.put.remote(held.copy())
            held.clear()
            sent = time.monotonic()

    return put
