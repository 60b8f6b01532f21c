"""Writes finished run directories for the points of a study, with scores and training that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.adapter import make_adapter
from harness.config.run_spec import RunSpec
from harness.pipeline.study import Plan, plan_study
from harness.rundir.schema import SCHEMA

ITEMS = 200
SEED_SECONDS = 150.0


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

    `logged` gives what stands in each of a run's step lines beside the old version's columns.
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


def write_finished(
    spec: RunSpec,
    scores: list[list[float]],
    *,
    entropy: float = 0.3,
    routed: float = 0.25,
    steps: int = 3,
    logged: dict[str, Any] | None = None,
) -> None:
    """Write one run as the pipeline leaves it, as far as `is_finished` and the reports read it."""
    _write(spec.path / "manifest.json", _manifest(spec))
    stages = [None, *spec.stages]
    for index, (stage, row) in enumerate(zip(stages, scores, strict=True)):
        folder = spec.path / (f"stage_{index}_{stage.name}" if stage else "stage_0")
        if stage is not None:
            _write(folder / "train" / "done.json", {"steps": steps})
            lines = (
                []
                if spec.entry == "none"
                else [_step(step, spec, entropy, routed) | (logged or {}) for step in range(steps)]
            )
            (folder / "train" / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        _write(folder / "drift" / "results.json", {})
        for task, score in zip([*spec.trained, *spec.suite.probes], row, strict=True):
            _write(folder / "eval" / task / "results.json", _cell(task, index, score))


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def _manifest(spec: RunSpec) -> dict[str, Any]:
    config = spec.config()
    made = {
        "git": {"commit": "f00dfeed" * 5, "dirty": False},
        "packages": {"torch": "2.13.0"},
        "hardware": {"cpus": 2},
        "command": "harness study trial",
        "created": "2026-01-02T03:04:05+00:00",
    }
    seconds = {"models": 30.0, "train": 100.0, "evaluate": 20.0, "total": SEED_SECONDS}
    return {
        "schema": SCHEMA,
        "suite": spec.suite.name,
        "adapter": spec.entry,
        "kind": spec.suite.adapters[spec.entry].adapter or spec.entry,
        "trains_on": sorted(make_adapter(spec.entry, spec.suite.adapters[spec.entry]).capabilities.trains_on),
        "adapter_config": {},
        "order": spec.order,
        "stages": [{"name": stage.name, "trains": list(stage.trains)} for stage in spec.stages],
        "probes": list(spec.suite.probes),
        "seed": spec.seed,
        "start": getattr(spec.suite.student, "strength", None) or "",
        "config": config,
        "config_hash": spec.config_hash,
        "weights": {},
        "sessions": [{**made, "seconds": seconds}],
        "finished": "2026-01-02T04:04:05+00:00",
    }


def _cell(task: str, stage: int, score: float) -> dict[str, Any]:
    correct = round(score * ITEMS)
    return {
        "task": task,
        "stage": stage,
        "metric": "strict",
        "score": correct / ITEMS,
        "metrics": {"strict": correct / ITEMS},
        "n": ITEMS,
        "outcomes": {"correct": correct, "wrong": ITEMS - correct, "unparsed": 0, "truncated": 0},
        "response_tokens_mean": 20.0,
        "seconds": 1.0,
        "weights": "w",
        "keys": {"comparability": "c"},
    }


def _step(step: int, spec: RunSpec, entropy: float, routed: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 0.5,
        "entropy": entropy,
        "routed_fkl": routed if spec.entry == "aopd" else None,
        "truncated_share": 0.1,
        "response_tokens_mean": 20.0,
        "tokens": 1000,
        "grad_norm": 1.0,
        "lr": 1e-4,
        "seconds": {"generate": 0.2, "teacher": 0.2, "student": 0.5, "step": 1.0},
    }
