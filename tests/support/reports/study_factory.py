"""Studies of the tiny suite, and finished runs for their points with scores and training that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.config.run_spec import RunSpec
from harness.pipeline.sweeps.study_runs import Plan, plan_study
from tests.support.reports.run_factory import write_finished


def study(
    folder: Path,
    factors: dict[str, Any],
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
    **changes: Any,
) -> Plan:
    """Write a study of the tiny suite and return its plan, with runs below `folder`/runs."""
    content = {
        "name": "trial",
        "title": "A trial",
        "suite": "tiny",
        "entries": ["opd", "aopd"],
        "seeds": list(seeds),
        "against": "opd",
        "claims": ["aopd"],
        "minutes_per_run": 2.0,
        "factors": factors,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "trial.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return plan_study(str(file), overrides, folder / "runs")


def fill(
    plan: Plan,
    scores: Callable[[RunSpec], list[list[float]]],
    entropy: Callable[[RunSpec], float] = lambda _: 0.3,
    logged: Callable[[RunSpec], dict[str, Any]] = lambda _: {},
) -> None:
    """Write every run of a plan as finished; `scores` gives its (T+1, tasks in stage order, then probes).

    `logged` gives further fields of each of a run's step lines.
    """
    for spec in plan.specs:
        write_finished(spec, scores(spec), entropy=entropy(spec), logged=logged(spec))


def constant(spec: RunSpec, learned: float, kept: float, start: float = 0.1) -> list[list[float]]:
    """Return scores of a run whose tasks are `learned` in their own stage and `kept` after every later one."""
    own = [(index, task) for index, stage in enumerate(spec.stages, start=1) for task in stage.trains]
    rows = []
    for stage in range(len(spec.stages) + 1):
        tasks = [start if stage < index else learned if stage == index else kept for index, _ in own]
        rows.append([*tasks, *(start for _ in spec.suite.probes)])
    return rows
