"""Measure a sweep of small runs: one after another, on two workers, and on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Measurement
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec, plan_runs
from harness.config.suite import Suite
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from harness.pipeline.sweeps.ray_sweep import sweep_on_ray
from harness.pipeline.sweeps.sweep import models_of, sweep
from harness.rundir.process.progress import silent
from tests.support.models import micro_suite, write_yaml

STEPS, LONG, ITEMS = 60, 400, 40  # with LONG steps a run takes several times as long as the start of a process
SETTLED = 20.0  # seconds in which the processes of a new Ray node have started


def small_suite(folder: Path, steps: int = STEPS, **changes: Any) -> Suite:
    """Return the micro suite with `steps` steps per stage."""
    raw = {**micro_suite(), "probes": [], "threads": 1, **changes}
    raw["training"] = {**raw["training"], "steps": steps}
    raw["evaluation"] = {**raw["evaluation"], "limit": ITEMS}
    return load_suite(str(write_yaml(folder / "suite.yaml", raw)))


def sweep_rows(folder: Path, runs: int, on_ray: bool) -> Iterator[Measurement]:
    """Yield the seconds of a sweep on two workers, and on Ray, against those of the same runs one after another."""
    suite = small_suite(folder, LONG, adapters={"opd": {}, "aopd": {}})

    def specs(out: str) -> list[RunSpec]:
        return plan_runs(suite, ["opd", "aopd"], range(runs // 2), "default", folder / out)

    for _, model, seed in models_of(specs("models")).values():
        checkpoint_of(model, seed, TaskLibrary(suite.include, suite.data))
    serial = _seconds(lambda: sweep(specs("serial"), 1, silent))
    what, against = f"sweep of {len(specs('serial'))} small runs", "one after another"
    two = _seconds(lambda: sweep(specs("two"), 2, silent))
    yield Measurement(f"{what}, two workers", "s, less is better", [two], against, [serial])
    if on_ray:
        yield Measurement(f"{what}, two Ray nodes", "s, less is better", [_on_ray(specs("ray"))], against, [serial])


def _on_ray(specs: list[RunSpec]) -> float:
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        time.sleep(SETTLED)  # a lab's cluster runs before the sweep begins
        return _seconds(lambda: sweep_on_ray(specs, cluster.address, silent))
    finally:
        cluster.shutdown()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
