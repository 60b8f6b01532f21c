"""Many runs on this machine: in parallel in a pool of processes, or one after another with one worker.

What only runs need is imported in the functions of the workers: it takes seconds, in which the workers import it themselves.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import NoReturn

from torch import distributed

from harness.adapter import uses_teacher
from harness.config.base import digest
from harness.config.models import Model, Scratch
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError, HarnessError, RunError
from harness.pipeline.adapter_checks import emulated_bfloat16
from harness.pipeline.processes.devices import (
    keep_freed_memory,
    limit_threads,
    resolve_device,
    usable_processors,
    visible_gpus,
    working_device,
)
from harness.pipeline.processes.started_teachers import gpus_of_teachers, started_teachers
from harness.pipeline.processes.stop_signals import forward_signals
from harness.pipeline.sweeps.worker_link import linked
from harness.pipeline.sweeps.workers import worker_end, worker_pool
from harness.rundir.process.progress import Event, Report
from harness.rundir.store import is_finished
from harness.rundir.training.snapshots import StopRequest

SIGNAL_SECONDS = 0.5  # the longest wait until a signal is answered


def threads_of(suite: Suite, workers: int) -> int | None:
    """Return the CPU threads of each of `workers` runs: the suite's number, else an equal share of the processors.

    None, for one worker, leaves torch's default. With more threads than processors a step is many times slower.
    """
    if suite.threads is not None or workers == 1:
        return suite.threads
    return max(1, usable_processors() // workers)


def default_workers(specs: Sequence[RunSpec]) -> int:
    """Return how many runs go in parallel: one for each share of GPUs (see `gpu_shares`), else one per processor.

    Servers of rollouts hold one set of weights, so runs that ask them go one after another.
    """
    if any(_shares_engine(spec) for spec in specs):
        return 1
    if shares := gpu_shares(specs[0].suite):
        return min(len(specs), len(shares))
    if resolve_device(specs[0].suite.device).startswith("cuda"):
        return 1
    return max(1, min(len(specs), usable_processors()))


def refuse_shared_engine(todo: Sequence[RunSpec], remedy: str) -> None:
    """Raise `ConfigError` where several runs at once would overwrite one another's weights on the servers that they ask."""
    if len(todo) > 1 and (sharing := [spec.suite.backend for spec in todo if _shares_engine(spec)]):
        raise ConfigError(
            f"{len(todo)} runs at once would share the servers of backend {sharing[0]}, which hold the weights of one run; "
            f"{remedy}, or start each with `harness run` and its own servers"
        )


def _shares_engine(spec: RunSpec) -> bool:
    return bool(getattr(spec.suite.engine, "is_shared", False))


def gpu_shares(suite: Suite) -> list[str]:
    """Return each worker's GPUs as a value of CUDA_VISIBLE_DEVICES; empty on a CPU, and where the suite names one GPU.

    A worker gets as many GPUs as a run uses: one for each of its processes, or those that its backend spreads a model over.
    GPUs of a teacher that the harness starts are left out.
    """
    if suite.device == "cpu" or ":" in suite.device:
        return []
    taken = gpus_of_teachers(suite)
    size = int(suite.gpus_on_a_node())
    gpus = [gpu for gpu in visible_gpus() if gpu not in taken]
    return [",".join(gpus[first : first + size]) for first in range(0, len(gpus) - size + 1, size)]


def sweep(
    specs: Sequence[RunSpec], workers: int, report: Report, on_finished: Callable[[RunSpec], object] = lambda _: None
) -> None:
    """Do all runs in `workers` processes, or in this process for one; `on_finished` is called after each run.

    One worker has a process of its own too where the harness serves a teacher on GPUs that the run must not see.
    After the first error no further run begins, and the error is raised when the runs under way have ended. SIGTERM and
    SIGINT reach every worker: its run ends after its present training step, with a snapshot.
    """
    todo = [spec for spec in specs if not is_finished(spec)]
    if workers > 1:
        refuse_shared_engine(todo, "do them one after another with --workers 1")
    shares, taken = gpu_shares(specs[0].suite), gpus_of_teachers(specs[0].suite)
    for suite in {spec.suite.name: spec.suite for spec in todo}.values():
        entries = {spec.entry for spec in todo if spec.suite.name == suite.name}
        if slow := emulated_bfloat16(suite, entries, resolve_device(suite.device)):
            report(Event("sweep", slow, warning=True))
    hides_gpus = bool(shares) and not taken.isdisjoint(visible_gpus()) and not distributed.is_torchelastic_launched()
    with started_teachers(todo, report) as started:
        served = {spec.path: spec for spec in started}
        runs = [served.get(spec.path, spec) for spec in specs]
        if workers > 1 or hides_gpus:
            _sweep_in_pool(runs, workers, shares, report, on_finished)
            return
        from harness.pipeline.run import run

        for spec in runs:
            run(spec, report)
            on_finished(spec)


def _sweep_in_pool(
    specs: Sequence[RunSpec],
    workers: int,
    shares: Sequence[str],
    report: Report,
    on_finished: Callable[[RunSpec], object],
) -> None:
    context = multiprocessing.get_context("spawn")
    if shares and workers > len(shares):
        sharing = f"{workers} workers share {len(shares)} GPU{'s' * (len(shares) > 1)}"
        report(
            Event(
                "sweep", f"{sharing}, each with its own models; use fewer --workers for one run per GPU", warning=True
            )
        )
    stop, started = StopRequest(), list[BaseProcess]()
    with linked(workers, context, report) as link:
        pool = worker_pool(workers, context, shares, link)
        try:
            with forward_signals(stop):
                pending = _submit(pool, specs, workers)
                started += multiprocessing.active_children()
                _drain(pending, on_finished, stop)
        except BaseException as error:
            link.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise RunError(_why_broken(started)) from error
            raise
        pool.shutdown(wait=False)  # the workers end while the caller goes on


def _submit(pool: ProcessPoolExecutor, specs: Sequence[RunSpec], workers: int) -> dict[Future[None], RunSpec | None]:
    """Queue models and runs seed by seed, the models as many seeds ahead of the runs as there are workers.

    Returns each job with its run, None for a model. Models are jobs of their own because runs of one seed would otherwise wait
    for one of them to build the models. The next seeds' students are built while the first runs wait for the teacher, which
    takes longest.
    """
    seeds = list(dict.fromkeys(spec.seed for spec in specs))
    groups = [[spec for spec in specs if spec.seed == seed] for seed in seeds]
    built: set[str] = set()
    pending: dict[Future[None], RunSpec | None] = {}
    for now, runs in enumerate(groups):
        for key, (spec, model, seed) in models_of(
            [spec for group in groups[now : now + 1 + workers] for spec in group]
        ).items():
            if key not in built:
                threads = threads_of(spec.suite, workers)
                pending[pool.submit(_build_in_worker, spec, model, seed, threads)] = None
                built.add(key)
        for spec in runs:
            pending[pool.submit(_run_in_worker, spec, threads_of(spec.suite, workers))] = spec
    return pending


def models_of(specs: Sequence[RunSpec]) -> dict[str, tuple[RunSpec, Model, int]]:
    """Return the distinct models that the runs build from scratch, by the digest of recipe and seed.

    Each comes with a run that needs it and its seed. Teachers come first, because they take longest. The runs may have
    different suites.
    """
    teachers = [(spec, stage.teacher) for spec in specs for stage in spec.stages if uses_teacher(spec, stage)]
    students = [(spec, spec.suite.student) for spec in specs]
    built = [(spec, model) for spec, model in [*teachers, *students] if isinstance(model, Scratch)]
    seeded = [(spec, model, spec.seed if model.seed is None else model.seed) for spec, model in built]
    return {digest([model.model_dump(mode="json"), seed]): (spec, model, seed) for spec, model, seed in seeded}


def _build_in_worker(spec: RunSpec, model: Model, seed: int, threads: int | None) -> None:
    if not worker_end().may_begin():
        return
    from harness.lmeval.library import TaskLibrary
    from harness.pipeline.build.model_source import checkpoint_of

    limit_threads(threads)
    keep_freed_memory()
    library = TaskLibrary(spec.suite.include, spec.suite.data)
    report, label = worker_end().report, f"model seed {seed}"
    device = working_device(spec.suite.device)

    def building(what: str, done: int, total: int) -> None:
        report(Event(label, f"build {what}", done, total))

    checkpoint_of(model, seed, library, building, device)
    report(Event(label, "built", 1, 1, finished=True))


def _run_in_worker(spec: RunSpec, threads: int | None) -> None:
    if not worker_end().may_begin():
        return
    from harness.pipeline.run import run

    limit_threads(threads)
    run(spec, worker_end().report)


def _drain(
    pending: dict[Future[None], RunSpec | None], on_finished: Callable[[RunSpec], object], stop: StopRequest
) -> None:
    left = set(pending)
    while left:
        # A signal that the system gives to another thread does not wake this one, in which Python answers it.
        done, left = wait(left, SIGNAL_SECONDS, FIRST_COMPLETED)
        # What has finished is reported before an error ends the sweep.
        for future in sorted(done, key=lambda each: each.exception() is not None):
            spec = pending[future]
            if (error := future.exception()) is not None:
                _raise(error, spec, stop)
            if spec is not None:
                on_finished(spec)


def _raise(error: BaseException, spec: RunSpec | None, stop: StopRequest) -> NoReturn:
    if stop.signal:
        raise RunError(f"stopped by {stop.signal}; the same command continues")
    if isinstance(error, SystemExit):
        raise RunError("a worker was ended by a signal; the same command continues") from error
    if isinstance(error, HarnessError) and spec:
        raise type(error)(f"{spec.label}: {error}")
    if isinstance(error, ImportError):
        raise RunError(
            f"a worker process cannot import what runs need ({error}); `harness doctor` names what is missing"
        ) from error
    raise error


def _why_broken(workers: Sequence[BaseProcess]) -> str:
    """Return a sentence about the worker that ended by itself; the pool has ended the other ones by SIGTERM."""
    for worker in workers:
        status = worker.exitcode or 0
        if status < 0 and -status != signal.SIGTERM:
            return (
                f"a worker process was killed by {signal.Signals(-status).name}, most often because memory ran out; use fewer "
                "--workers; the same command continues from the last snapshots"
            )
        if status > 0:
            return f"a worker process ended with status {status}; what it printed above says why"
    return "a worker process ended before its run did; the same command continues from the last snapshots"
