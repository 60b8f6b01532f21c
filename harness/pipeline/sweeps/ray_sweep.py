"""Many runs on a Ray cluster: models and runs are Ray tasks, and Ray starts a task again when its node dies.

Every node must see the run folder and the model cache under the same paths, on a file system with locks, or the suite names a
`storage` for finished stages. Where the cluster has room, a stage is evaluated by a task of its own while the next one trains.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.adapter import uses_teacher
from harness.config.base import is_list, is_mapping
from harness.config.run_spec import RunSpec
from harness.config.suite import Resources
from harness.errors import ConfigError, HarnessError, RunError
from harness.pipeline.processes.started_teachers import gpus_of_teachers, started_teachers
from harness.pipeline.processes.stop_signals import note_signals
from harness.pipeline.sweeps.ray_nodes import on_node, reserve_nodes
from harness.pipeline.sweeps.ray_tasks import RETRIES, Board, Driver, build_model, do_run, on_this_node, task_options
from harness.pipeline.sweeps.sweep import models_of, refuse_shared_engine
from harness.rundir.process.progress import Report
from harness.rundir.shared.remote_stages import RemoteStages
from harness.rundir.training.snapshots import StopRequest

POLL_SECONDS, CONNECT_SECONDS = 0.5, 10.0
CARRIED = ("HARNESS_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "TOKENIZERS_PARALLELISM", "TQDM_DISABLE")


def sweep_on_ray(
    specs: Sequence[RunSpec], address: str, report: Report, on_finished: Callable[[RunSpec], object] = lambda _: None
) -> None:
    """Do all runs on the cluster at `address`; `auto` is the cluster of this machine.

    After the first error no further run begins, and the error is raised when the runs under way have ended. Raises
    `ConfigError` where Ray is not installed, no cluster answers, or no node has what a suite asks for.
    """
    refuse_shared_engine(specs, "do them one after another without --ray")
    ray = _connect(address)
    try:
        refuse_teachers_on_offered_gpus(specs, _gpus_offered_here(ray))
        with started_teachers([replace(spec, out=spec.out.resolve()) for spec in specs], report) as started:
            _sweep(ray, started, report, on_finished)
    finally:
        ray.shutdown()


def refuse_teachers_on_offered_gpus(specs: Sequence[RunSpec], offered: float) -> None:
    """Raise `ConfigError` where a teacher is to be served on GPUs of this machine, of which Ray offers `offered`."""
    asking = [spec for spec in specs if any(uses_teacher(spec, stage) for stage in spec.stages)]
    taken = {gpu for spec in asking for gpu in gpus_of_teachers(spec.suite)}
    if taken and offered:
        raise ConfigError(
            f"teacher.start.gpus names GPUs {', '.join(sorted(taken))} of this machine, and Ray gives its {offered:g} GPUs to "
            "runs; start Ray on this machine with --num-gpus 0, or serve the teacher elsewhere and name its urls"
        )


def _gpus_offered_here(ray: Any) -> float:
    here = ray.get_runtime_context().get_node_id()
    return sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"] and node["NodeID"] == here)


def _connect(address: str) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray needs Ray, which is not installed; pip install 'continual-harness[ray]' on every node")
    import ray  # pyright: ignore[reportMissingImports]

    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself waits for minutes where nobody listens
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray {address}: no cluster answers there ({str(error).splitlines()[0]}); start one with `ray start --head`"
        ) from error
    return ray


def _sweep(ray: Any, specs: Sequence[RunSpec], report: Report, on_finished: Callable[[RunSpec], object]) -> None:
    # The board is on the driver's node, so that it is not lost with another one.
    board = ray.remote(num_cpus=0, scheduling_strategy=on_this_node(ray))(Board).remote()
    driver = Driver(board, marker := _marker(specs[0].out), _carried(specs))
    try:
        _drain(ray, _Tasks(ray, specs, driver), board, report, on_finished)
    finally:
        marker.unlink(missing_ok=True)


def _carried(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Return the variables of this process that the workers get, among them the API keys of the suites' teachers."""
    suites = {id(spec.suite): spec.suite for spec in specs}.values()
    teachers = [teacher for suite in suites for teacher in (suite.teacher, *(stage.teacher for stage in suite.stages))]
    keys = {name for teacher in teachers if teacher for name in _key_variables(teacher.model_dump(mode="json"))}
    return {name: value for name in sorted({*CARRIED, *keys}) if (value := os.environ.get(name))}


def _key_variables(settings: Any) -> Iterator[str]:
    """Yield the names under `api_key_variable` in a teacher's settings and in those of the teachers behind it."""
    if is_list(settings):
        for each in settings:
            yield from _key_variables(each)
    elif is_mapping(settings):
        for key, value in settings.items():
            if key == "api_key_variable" and isinstance(value, str):
                yield value
            else:
                yield from _key_variables(value)


def _marker(out: Path) -> Path:
    """Write a file by which a node knows that it sees the driver's `out`; it holds the driver's current folder."""
    out.mkdir(parents=True, exist_ok=True)
    marker = out / f".sweep-{uuid.uuid4().hex}"
    marker.write_text(str(Path.cwd()), encoding="utf-8")
    return marker


class _Tasks:
    """The tasks of the models and runs that Ray has been asked for; a run waits for its own models.

    `pending` has each task with its run, None for a model. Ray itself holds a run on one node back until its models are built.
    A run over several nodes is asked for only then: its reserved nodes could be those on which models are still to be built.
    """

    def __init__(self, ray: Any, specs: Sequence[RunSpec], driver: Driver) -> None:
        self.ray, self.driver = ray, driver
        self.pending: dict[Any, RunSpec | None] = {}
        self._groups: dict[Any, Any] = {}
        self._waiting: list[tuple[RunSpec, dict[str, Any], list[Any]]] = []
        options = {id(spec): task_options(ray, spec.suite) for spec in specs}
        built: dict[str, Any] = {}
        for spec in specs:
            asked = options[id(spec)]
            for key, (_, model, seed) in models_of([spec]).items():
                if key not in built:
                    built[key] = ray.remote(build_model).options(**asked).remote(spec, model, seed, driver)
                    self.pending[built[key]] = None
            needed = [built[key] for key in models_of([spec])]
            if _nodes_of(spec) > 1:
                self._waiting.append((spec, asked, needed))
            else:
                self.pending[ray.remote(do_run).options(**asked).remote(spec, asked, None, driver, *needed)] = spec
        self.reserve()

    def reserve(self) -> None:
        """Ask for the nodes of each run over several nodes whose models are built, and for the run on them."""
        waiting, self._waiting = self._waiting, []
        for spec, asked, needed in waiting:
            if not self.pending.keys().isdisjoint(needed):
                self._waiting.append((spec, asked, needed))
                continue
            group = reserve_nodes(self.ray, _nodes_of(spec), asked)
            task = self.ray.remote(do_run).options(**on_node(asked, group, 0)).remote(spec, asked, group, self.driver)
            self.pending[task], self._groups[task] = spec, group

    def close(self, task: Any) -> RunSpec | None:
        """Free the nodes of a task that has ended, and return its run."""
        if (group := self._groups.pop(task, None)) is not None:
            self.ray.util.remove_placement_group(group)  # this ends the workers in it
        return self.pending.pop(task)


def _nodes_of(spec: RunSpec) -> int:
    return (spec.suite.resources or Resources()).nodes


def _drain(ray: Any, tasks: _Tasks, board: Any, report: Report, on_finished: Callable[[RunSpec], object]) -> None:
    """Wait for all tasks and report their events; the first error or signal lets no further run begin and is raised last."""
    failure: BaseException | None = None
    request = StopRequest()
    with note_signals(request):
        while tasks.pending:
            if request.signal and failure is None:
                failure = RunError(f"stopped by {request.signal}; the same command continues")
                ray.get(board.stop.remote())
                for task in tasks.pending:
                    ray.cancel(task)  # as SIGINT in its worker, so a run leaves a snapshot
            done, _ = ray.wait(list(tasks.pending), timeout=POLL_SECONDS)
            for event in ray.get(board.take.remote()):
                report(event)
            for task in done:
                spec = tasks.close(task)
                if (error := _settle(ray, task, spec, on_finished)) is not None:
                    failure = failure or error
                    ray.get(board.stop.remote())
            if failure is None:
                tasks.reserve()
        for event in ray.get(board.take.remote()):  # a task's last event may arrive after its result
            report(event)
    if failure is not None:
        raise failure


def _settle(
    ray: Any, task: Any, spec: RunSpec | None, on_finished: Callable[[RunSpec], object]
) -> BaseException | None:
    """Fetch and report the run of a task that has ended; return what failed: the task, the fetch or the report."""
    try:
        finished = ray.get(task)
    except Exception as error:
        return _explained(ray, error, spec)
    if not finished or spec is None:
        return None
    try:
        RemoteStages.of(spec).fetch()
        on_finished(spec)
    except Exception as error:
        return error
    return None


def _explained(ray: Any, error: Exception, spec: RunSpec | None) -> BaseException:
    """Return the error that a task raised, or a sentence about the death of its worker or node."""
    cause: BaseException = error
    while isinstance(cause, ray.exceptions.RayTaskError):  # one for each task that passed the error on
        cause = cause.cause  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(cause, HarnessError):
        return type(cause)(f"{spec.label}: {cause}" if spec else str(cause))
    if isinstance(cause, ImportError):
        return RunError(
            f"a worker cannot import what runs need ({cause}); install the same packages on every node; `harness doctor` on "
            "that node names what is missing"
        )
    if isinstance(error, ray.exceptions.RayTaskError):
        return cause
    return RunError(
        f"{spec.label if spec else 'a model'}: its worker or node died {RETRIES + 1} times, most often because memory ran out "
        f"({type(error).__name__}); ask for more under `resources`; the same command continues from the last snapshots"
    )
