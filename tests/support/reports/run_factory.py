"""The one writer of run directories for tests and benchmarks: the pipeline's files, with scores that the caller chooses.

`write_run` writes a run that a test describes, perhaps unfinished; `write_finished` writes the finished run of a `RunSpec`;
`write_folders` writes the files of any run from functions that make its cells, step logs and drift.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from harness.adapter import make_adapter
from harness.config.run_spec import RunSpec
from harness.rundir.files import CURVE, write_cell, write_json
from harness.rundir.records.cell_records import CellSummary, DriftSummary
from harness.rundir.records.training_records import CurvePoint, DoneFile, StepLine
from harness.rundir.schema import Manifest
from harness.rundir.stage_folder import cell_name, stage_folder
from harness.rundir.store import MANIFEST
from tests.support.reports.records import cell_of, manifest_of

HOSTILE = "</script><script>alert('owned')</script><img src=http://evil.example/x onerror=alert(1)> | ``` & \x07"
TRAINS_ON = {"none": [], "sft": ["data"], "seqkd": ["teacher"], "external": ["data"]}
STAGES = ("tiny_arithmetic", "tiny_weather")
PROBES = ("tiny_long_sums",)
TAUGHT: dict[str, Any] = {
    "pull_up": 0.02, "pull_down": 0.01, "fkl_gradient_share": None, "top_k": 1, "overlap": 0.9, "student_top_mass": 0.8,
    "teacher_top_mass": 0.95, "warnings": [],
}  # fmt: skip
SECONDS = {"models": 5.0, "train": 8.2, "evaluate": 13.5, "total": 40.0}
MEMORY: dict[str, Any] = {"of": "process", "train": 2**30, "evaluate": 3 * 2**29}
SCORES = [[0.50, 0.10, 0.60], [0.80, 0.20, 0.50], [0.30, 0.90, 0.40]]
SEED_SECONDS = 150.0
CREATED, FINISHED = "2026-01-02T03:04:05+00:00", "2026-01-02T04:04:05+00:00"
STEP: dict[str, Any] = {"loss": 0.5, "truncated_share": 0.1, "tokens": 1000, "grad_norm": 1.0, "lr": 1e-4}

Cell = Callable[[str, int, float], tuple[CellSummary, pd.DataFrame | None]]
Drift = Callable[[int], tuple[DriftSummary, pd.DataFrame | None]]


def write_run(
    root: Path,
    adapter: str = "aopd",
    seed: int = 0,
    scores: Sequence[Sequence[float]] = SCORES,
    *,
    suite: str = "tiny",
    stages: Sequence[str] = STAGES,
    probes: Sequence[str] = PROBES,
    order: str = "default",
    start: str | None = "weak",
    items: int = 10,
    phrasings: int = 1,
    steps: int = 4,
    evaluated: int | None = None,
    comparability: str = "c0",
    samples: bool = True,
    joint: bool = False,
    logged: dict[str, Any] | None = None,
    kind: str | None = None,
    further: Mapping[str, Sequence[Sequence[float]]] = MappingProxyType({}),
    weights: str = "",
    curves: Callable[[int], Sequence[dict[str, Any]]] | None = None,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write one run and return its folder; `scores` (T+1, tasks) are shares that `items` can express.

    Every `phrasings` neighbouring items are one cluster. `evaluated` stops the run after that many evaluations, counted over
    stages and tasks: an unfinished run. `joint` makes one stage of all `stages`. `further` are the scores under profiles
    after the first, `greedy`. `weights` is the digest of the start's weights, `curves` returns the points of a stage's
    learning curve, `config` adds to the suite's configuration. `kind` is the entry's adapter. `logged` is added to every line
    of the step log; without it the log is that of an early version.
    """
    run = root / suite / adapter / order / f"seed{seed}"
    session = {
        "git": {"commit": "f00dfeed" * 5, "dirty": True},
        "packages": {"torch": "2.13.0", "lm_eval": "0.4.13"},
        "hardware": {"cpu": "2 cores"},
        "command": f"harness run {suite} --adapter {adapter} --seed {seed}",
        "created": CREATED,
        "seconds": SECONDS,
        "peak_memory": MEMORY | {"train": (seed + 1) * 2**30},
    }
    trains = [("joint", list(stages))] if joint else [(stage, [stage]) for stage in stages]
    manifest = manifest_of(
        suite=suite, adapter=adapter, kind=kind or adapter, trains_on=TRAINS_ON.get(kind or adapter, ["student"]),
        adapter_config={"note": HOSTILE}, order=order, stages=[{"name": name, "trains": tasks} for name, tasks in trains],
        probes=list(probes), seed=seed, start=start or "", config={"name": suite, "description": HOSTILE, **config},
        config_hash="0123456789abcdef", weights={"start": weights or f"digest-start-{seed}", "teacher": "digest-teacher"},
        sessions=[session], finished=FINISHED if evaluated is None else None,
        profiles={name: [*stages, *probes] for name in (["greedy", *further] if further else [])},
    )  # fmt: skip

    def make_cell(task: str, stage: int, score: float) -> tuple[CellSummary, pd.DataFrame | None]:
        digest = f"digest-{stage}" if stage else (weights or f"digest-start-{seed}")
        summary, frame = _cell(task, stage, score, items, phrasings, comparability, digest)
        return summary, frame if samples else None

    lines = [] if adapter == "none" else [_line(step, adapter) | (logged or {}) for step in range(steps)]
    tasks = [*stages, *probes]
    write_folders(run, manifest, tasks, scores, make_cell, lambda _: lines, evaluated=evaluated, further=further)
    for stage in range(1, len(manifest.stages) + 1):
        points = [
            CurvePoint.model_validate(point).model_dump_json() + "\n" for point in (curves(stage) if curves else ())
        ]
        if points:
            log = stage_folder(run, stage, manifest.stages[stage - 1].name).step_log
            log.with_name(CURVE).write_text("".join(points), encoding="utf-8")
    return run


def curve_points(scores: Mapping[str, Sequence[float]], items: int = 20) -> list[dict[str, Any]]:
    """Return a stage's learning curve: each task's score at steps 0, 10, 20, ..., its first items right."""
    points = []
    for place in range(len(next(iter(scores.values())))):
        for task, values in scores.items():
            right = [float(item < round(values[place] * items)) for item in range(items)]
            own = {"step": 10 * place, "task": task, "score": sum(right) / items}
            points.append({**own, "items": right, "clusters": list(map(str, range(items)))})
    return points


def write_finished(
    spec: RunSpec,
    scores: Sequence[Sequence[float]],
    *,
    entropy: float = 0.3,
    routed: float = 0.25,
    steps: int = 3,
    logged: dict[str, Any] | None = None,
    items: int = 200,
    further: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> None:
    """Write one run as the pipeline leaves it, as far as `is_finished` and the reports read it.

    `further` are the scores under profiles after the first, `greedy`; without it `paper` has the same scores.
    """
    further = {"paper": scores} if further is None else further
    config, entry = spec.config(), spec.suite.adapters[spec.entry]
    session = {
        "git": {"commit": "f00dfeed" * 5, "dirty": False},
        "packages": {"torch": "2.13.0"},
        "hardware": {"cpus": 2},
        "command": "harness study trial",
        "created": CREATED,
        "seconds": {"models": 30.0, "train": 100.0, "evaluate": 20.0, "total": SEED_SECONDS},
    }
    manifest = manifest_of(
        suite=spec.suite.name, adapter=spec.entry, kind=entry.adapter or spec.entry,
        trains_on=sorted(make_adapter(spec.entry, entry).capabilities.trains_on), adapter_config={}, order=spec.order,
        stages=[
            {"name": stage.name, "trains": list(stage.trains), "adapter": stage.own_adapter * (stage.adapter.adapter or "")}
            for stage in spec.stages
        ],
        probes=list(spec.suite.probes), seed=spec.seed, start=spec.suite.student.start_name,
        config=config, config_hash=spec.config_hash, sessions=[session], finished=FINISHED, looks=spec.suite.planned_looks,
        profiles={name: [*spec.trained, *spec.suite.probes] for name in ("greedy", *further)},
    )  # fmt: skip

    def make_cell(task: str, stage: int, score: float) -> tuple[CellSummary, None]:
        right = round(score * items)
        outcomes = {"correct": right, "wrong": items - right, "unparsed": 0, "truncated": 0}
        keys = {"comparability": "c"}
        return cell_of(right / items, task=task, stage=stage, n=items, outcomes=outcomes, metrics={"strict": right / items},
                       response_tokens_mean=20.0, seconds=1.0, weights="w", keys=keys), None  # fmt: skip

    fields = {"entropy": entropy, "routed_fkl": routed if spec.entry == "aopd" else None, "response_tokens_mean": 20.0,
              "seconds": {"generate": 0.2, "teacher": 0.2, "student": 0.5, "step": 1.0}, **(logged or {})}  # fmt: skip
    lines = [] if spec.entry == "none" else [{"step": step, **STEP, **fields} for step in range(steps)]
    tasks = [*spec.trained, *spec.suite.probes]
    write_folders(
        spec.path, manifest, tasks, scores, make_cell, lambda _: lines, lambda _: (DriftSummary(), None),
        further=further,
    )  # fmt: skip


def write_folders(
    run: Path,
    manifest: Manifest,
    tasks: Sequence[str],
    scores: Sequence[Sequence[float]],
    make_cell: Cell,
    make_lines: Callable[[int], Sequence[dict[str, Any]]],
    make_drift: Drift | None = None,
    evaluated: int | None = None,
    further: Mapping[str, Sequence[Sequence[float]]] = MappingProxyType({}),
) -> None:
    """Write a run's manifest, step logs, cells and drift, stage by stage, until `evaluated` cells are written.

    Those of `further` profiles are all written.
    """
    run.mkdir(parents=True)
    write_json(run / MANIFEST, manifest.as_json())
    left = 10**6 if evaluated is None else evaluated
    for index, row in enumerate(scores[: len(manifest.stages) + 1]):
        folder = stage_folder(run, index, manifest.stages[index - 1].name)
        lines = make_lines(index) if index and left > 0 else []
        if lines:
            folder.step_log.parent.mkdir(parents=True)
            checked = [StepLine.model_validate(line) and json.dumps(line) + "\n" for line in lines]
            folder.step_log.write_text("".join(checked))
        for task, score in list(zip(tasks, row, strict=True))[: max(0, left)]:
            _write_evaluation(folder.cell(task), *make_cell(task, index, score))
        if index and left >= len(tasks):
            done = folder.step_log.with_name("done.json")
            done.parent.mkdir(parents=True, exist_ok=True)
            write_json(done, DoneFile(steps=len(lines)).as_json())
        if make_drift is not None:
            _write_evaluation(folder.drift, *make_drift(index))
        left -= len(tasks)
        for profile, rows in further.items():
            for task, score in zip(tasks, rows[index], strict=True):
                summary, frame = make_cell(task, index, score)
                named = summary.model_copy(update={"profile": profile})
                _write_evaluation(folder.cell(cell_name(task, profile)), named, frame)


def _write_evaluation(folder: Path, summary: CellSummary | DriftSummary, frame: pd.DataFrame | None) -> None:
    if frame is not None:
        write_cell(folder, summary, frame)
    else:
        folder.mkdir(parents=True)
        write_json(folder / "results.json", summary.as_json())


def _cell(
    task: str, stage: int, score: float, items: int, phrasings: int, comparability: str, weights: str
) -> tuple[CellSummary, pd.DataFrame]:
    """Return a cell whose first items are right, the next half of the rest wrong, the others truncated."""
    correct = round(score * items)
    wrong = (items - correct) // 2
    outcomes = ["correct"] * correct + ["wrong"] * wrong + ["truncated"] * (items - correct - wrong)
    share, grades = correct / items, [float(outcome == "correct") for outcome in outcomes]
    summary = cell_of(
        share, task=task, stage=stage, n=items, clusters=-(-items // phrasings),
        metrics={"strict": share, "lenient": min(1.0, share + 0.05)},
        outcomes={name: outcomes.count(name) for name in ("correct", "wrong", "unparsed", "truncated")},
        response_tokens_mean=21.5, seconds=1.5, weights=weights,
        keys={"generation": "g", "grading": "r", "comparability": comparability},
    )  # fmt: skip
    answers = {"prompt": "1+1=", "target": "2", "response": HOSTILE, "finish": "stop", "tokens": 7}
    named = {"item_id": [f"{task}/{i}" for i in range(items)], "cluster": [str(i // phrasings) for i in range(items)]}
    return summary, pd.DataFrame({**named, **answers, "score": grades, "outcome": outcomes, "strict": grades})


def _line(step: int, adapter: str) -> dict[str, Any]:
    """Return a step: entropy falls from 1 by a tenth a step, and a step takes a second."""
    advantage = {"advantage_mean": -0.1, "advantage_q05": -2.0, "advantage_q50": 0.0, "advantage_q95": 0.5}
    return {
        "step": step,
        **STEP,
        "entropy": 1 - 0.1 * step,
        **(advantage if adapter != "sft" else {"advantage_mean": None}),
        "routed_fkl": 0.3 if adapter == "aopd" else None,
        "response_tokens_mean": 21.0,
        "seconds": {"generate": 0.25, "teacher": 0.25, "student": 0.5, "step": 1.0},
    }
