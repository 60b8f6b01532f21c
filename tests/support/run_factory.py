"""Writes run directories as the pipeline does, with scores that a test chooses, so that every number is known."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.rundir.schema import SCHEMA

HOSTILE = "</script><script>alert('owned')</script><img src=http://evil.example/x onerror=alert(1)> | ``` & \x07"
TRAINS_ON = {"none": [], "sft": ["data"], "seqkd": ["teacher"], "external": ["data"]}
STAGES = ("tiny_arithmetic", "tiny_weather")
PROBES = ("tiny_long_sums",)
TAUGHT: dict[str, Any] = {
    "pull_up": 0.02,
    "pull_down": 0.01,
    "fkl_gradient_share": None,
    "top_k": 1,
    "overlap": 0.9,
    "student_top_mass": 0.8,
    "teacher_top_mass": 0.95,
    "warnings": [],
}
SECONDS = {"models": 5.0, "train": 8.2, "evaluate": 13.5, "total": 40.0}
MEMORY: dict[str, Any] = {"of": "process", "train": 2**30, "evaluate": 3 * 2**29}
SCORES = [[0.50, 0.10, 0.60], [0.80, 0.20, 0.50], [0.30, 0.90, 0.40]]


def write_run(
    root: Path,
    adapter: str = "aopd",
    seed: int = 0,
    scores=SCORES,
    *,
    suite: str = "tiny",
    stages=STAGES,
    probes=PROBES,
    order: str = "default",
    start: str | None = "weak",
    items: int = 10,
    steps: int = 4,
    evaluated: int | None = None,
    comparability: str = "c0",
    samples: bool = True,
    joint: bool = False,
    logged: dict[str, Any] | None = None,
    kind: str | None = None,
) -> Path:
    """Write one run and return its folder; `scores` (T+1, tasks) are shares that `items` can express.

    `evaluated` stops the run after that many evaluations, counted over stages and tasks: an unfinished run. `joint` makes
    one stage of all `stages`. `kind` is the entry's adapter.
    `logged` is added to every line of the step log; without it the log is an old version's.
    """
    run = root / suite / adapter / order / f"seed{seed}"
    tasks, left = [*stages, *probes], evaluated if evaluated is not None else 10**6
    trains = [("joint", list(stages))] if joint else [(stage, [stage]) for stage in stages]
    _write_manifest(run, suite, adapter, seed, trains, probes, order, start, finished=evaluated is None, kind=kind)
    for stage in range(len(trains) + 1):
        folder = run / (f"stage_{stage}_{trains[stage - 1][0]}" if stage else "stage_0")
        if stage and left > 0 and adapter != "none":
            _write_steps(folder / "train", steps, adapter, logged or {})
        for task, score in zip(tasks, scores[stage], strict=True):
            if left > 0:
                _write_cell(folder / "eval" / task, task, stage, score, items, comparability, samples)
            left -= 1
    return run


def _write_manifest(run: Path, suite, adapter, seed, trains, probes, order, start, finished: bool, kind) -> None:
    manifest = {
        "schema": SCHEMA,
        "suite": suite,
        "adapter": adapter,
        "kind": kind or adapter,
        "trains_on": TRAINS_ON.get(kind or adapter, ["student"]),
        "adapter_config": {"note": HOSTILE},
        "order": order,
        "stages": [{"name": name, "trains": tasks} for name, tasks in trains],
        "probes": list(probes),
        "seed": seed,
        "start": start or "",
        "config": {"name": suite, "description": HOSTILE},
        "config_hash": "0123456789abcdef",
        "weights": {"start": f"digest-start-{seed}", "teacher": "digest-teacher"},
        "sessions": [
            {
                "git": {"commit": "f00dfeed" * 5, "dirty": True},
                "packages": {"torch": "2.13.0", "lm_eval": "0.4.13"},
                "hardware": {"cpu": "2 cores"},
                "command": f"harness run {suite} --adapter {adapter} --seed {seed}",
                "created": "2026-01-02T03:04:05+00:00",
                "seconds": SECONDS,
                "peak_memory": MEMORY | {"train": (seed + 1) * 2**30},
            }
        ],
        "finished": "2026-01-02T04:04:05+00:00" if finished else None,
    }
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps(manifest))


def _write_cell(folder: Path, task: str, stage: int, score: float, items: int, comparability: str, samples) -> None:
    correct = round(score * items)
    wrong = (items - correct) // 2
    outcomes = ["correct"] * correct + ["wrong"] * wrong + ["truncated"] * (items - correct - wrong)
    results = {
        "task": task,
        "stage": stage,
        "metric": "strict",
        "score": correct / items,
        "metrics": {"strict": correct / items, "lenient": min(1.0, correct / items + 0.05)},
        "n": items,
        "outcomes": {name: outcomes.count(name) for name in ("correct", "wrong", "unparsed", "truncated")},
        "response_tokens_mean": 21.5,
        "seconds": 1.5,
        "weights": f"digest-{stage}",
        "keys": {"generation": "g", "grading": "r", "comparability": comparability},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    if samples:
        grades = [float(outcome == "correct") for outcome in outcomes]
        columns = {"prompt": "1+1=", "target": "2", "response": HOSTILE, "finish": "stop", "tokens": 7}
        frame = pd.DataFrame({"item_id": [f"{task}/{i}" for i in range(items)]}).assign(**columns)
        frame.assign(score=grades, outcome=outcomes, strict=grades).to_parquet(folder / "samples.parquet")


def _write_steps(folder: Path, steps: int, adapter: str, logged: dict[str, Any]) -> None:
    """Entropy falls from 1 by a tenth a step; a step takes a second."""
    folder.mkdir(parents=True)
    on_policy = adapter != "sft"
    advantage = {"advantage_mean": -0.1, "advantage_q05": -2.0, "advantage_q50": 0.0, "advantage_q95": 0.5}
    lines = [
        {
            "step": step,
            "loss": 0.5,
            "entropy": 1 - 0.1 * step,
            **(advantage if on_policy else {"advantage_mean": None}),
            "routed_fkl": 0.3 if adapter == "aopd" else None,
            "response_tokens_mean": 21.0,
            "truncated_share": 0.1,
            "tokens": 1000,
            "grad_norm": 1.0,
            "lr": 1e-4,
            "seconds": {"generate": 0.25, "teacher": 0.25, "student": 0.5, "step": 1.0},
            **logged,
        }
        for step in range(steps)
    ]
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
