"""Write synthetic run directories as large as a real study's: random scores, texts of real lengths, full logs, no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.rundir.records.cell_records import DRIFT_FIGURES, OUTCOMES, CellSummary, DriftSummary, Keys
from harness.rundir.schema import SCHEMA, Manifest, Session, StageRecord
from tests.support.reports.run_factory import write_folders

ADAPTERS = ("opd", "aopd", "gkd", "grpo", "sft")
STAGES = ("math_word_problems", "tools_weather", "tools_currency", "tools_calendar")
PROBES = ("general_knowledge",)
WORDS = [
    f"{a}{b}" for a in ("ba", "co", "di", "fu", "me", "no", "ri", "ta", "vo", "zu") for b in ("n", "rt", "lla", "s")
]
QUANTILES = {"q01": -4.0, "q05": -1.5, "q25": -0.2, "q50": 0.0, "q75": 0.1, "q95": 0.4, "q99": 0.8}


@dataclass(frozen=True)
class Scale:
    """How many runs and how large; text lengths are in words."""

    adapters: Sequence[str] = ADAPTERS
    seeds: int = 6
    stages: Sequence[str] = STAGES
    probes: Sequence[str] = PROBES
    items: int = 140
    steps: int = 200
    prompt: int = 60
    response: int = 150
    drift_items: int = 64

    @property
    def tasks(self) -> list[str]:
        """All evaluated tasks."""
        return [*self.stages, *self.probes]

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(self.adapters) * self.seeds

    @property
    def samples(self) -> int:
        """How many graded answers all runs hold."""
        return self.runs * (len(self.stages) + 1) * len(self.tasks) * self.items


def write_runs(root: Path, scale: Scale) -> Path:
    """Write all runs below `root` and return the suite's folder; equal scales give equal bytes."""
    for place, adapter in enumerate(scale.adapters):
        for seed in range(scale.seeds):
            _write_run(root / "large" / adapter / "default" / f"seed{seed}", scale, place, adapter, seed)
    return root / "large"


def _write_run(run: Path, scale: Scale, place: int, adapter: str, seed: int) -> None:
    random = np.random.default_rng([place, seed])
    stages, tasks = range(len(scale.stages) + 1), scale.tasks
    abilities = [[_ability(stage, task, place, len(scale.stages)) for task in range(len(tasks))] for stage in stages]

    def make_cell(task: str, stage: int, ability: float) -> tuple[CellSummary, pd.DataFrame]:
        own = ability + 0.03 * random.standard_normal()
        return _cell(scale, (tasks.index(task), task), own, _weights(stage, seed), random)

    def make_lines(_: int) -> list[dict[str, Any]]:
        return [_line(step, adapter, random.standard_normal(16)) for step in range(scale.steps)]

    def make_drift(stage: int) -> tuple[DriftSummary, pd.DataFrame]:
        return _drift(scale, stage, random)

    write_folders(run, _manifest(scale, adapter, seed), tasks, abilities, make_cell, make_lines, make_drift)


def _ability(stage: int, task: int, place: int, stages: int) -> float:
    """Return the share of right answers: it rises at the task's own stage, then falls at a pace that depends on the method."""
    own = task + 1
    if own > stages:
        return 0.6 - 0.03 * stage
    learned = 0.75 + 0.03 * (place % 5)
    return 0.2 if stage < own else learned - (0.04 + 0.02 * (place % 4)) * (stage - own)


def _manifest(scale: Scale, adapter: str, seed: int) -> Manifest:
    session = Session.model_validate(
        {
            "git": {"commit": "f00dfeed" * 5, "dirty": False},
            "packages": {"torch": "2.13.0", "transformers": "5.17.0", "lm_eval": "0.4.13"},
            "hardware": {"cpus": 16, "memory_gib": 128},
            "command": f"harness run large --adapter {adapter} --seed {seed}",
            "created": "2026-01-02T03:04:05+00:00",
            "seconds": {"models": 30.0, "train": 5200.0, "evaluate": 900.0, "total": 6300.0},
        }
    )
    return Manifest(
        version=SCHEMA,
        suite="large",
        adapter=adapter,
        kind=adapter,
        trains_on=("data",) if adapter == "sft" else ("student",),
        adapter_config={"adapter": adapter, "learning_rate": 1e-5},
        order="default",
        stages=tuple(StageRecord(name=name, trains=(name,), steps=scale.steps) for name in scale.stages),
        probes=tuple(scale.probes),
        seed=seed,
        start="weak",
        config={"name": "large", "stages": list(scale.stages), "seeds": list(range(scale.seeds))},
        config_hash="0123456789abcdef",
        weights={
            "teacher": "teacher",
            **{f"stage_{n}" if n else "start": _weights(n, seed) for n in range(len(scale.stages) + 1)},
        },
        sessions=(session,),
        finished="2026-01-02T04:49:05+00:00",
    )


def _weights(stage: int, seed: int) -> str:
    return f"stage_{stage}-{seed}" if stage else f"start-{seed}"


def _cell(
    scale: Scale, task: tuple[int, str], ability: float, weights: str, random: np.random.Generator
) -> tuple[CellSummary, pd.DataFrame]:
    number, name = task
    items, difficulty = scale.items, np.random.default_rng(number).random(scale.items)
    right = difficulty + 0.15 * random.standard_normal(items) < ability
    failed = random.choice(OUTCOMES[1:], items, p=[0.7, 0.2, 0.1])
    outcomes = np.where(right, "correct", failed)
    words = random.integers(0, len(WORDS), (items, scale.response))
    samples = pd.DataFrame(
        {
            "item_id": [f"{name}-{item:05d}" for item in range(items)],
            "sample": 0,
            "prompt": list(_texts(np.random.default_rng(100 + number).integers(0, len(WORDS), (items, scale.prompt)))),
            "target": [str(item) for item in range(items)],
            "response": list(_texts(words)),
            "finish": np.where(outcomes == "truncated", "length", "stop"),
            "tokens": random.integers(scale.response // 2, 2 * scale.response, items),
            "score": right.astype(float),
            "outcome": outcomes,
            "strict": right.astype(float),
        }
    )
    return _results(name, weights, samples), samples


def _texts(words: np.ndarray) -> Iterator[str]:
    return (" ".join(map(WORDS.__getitem__, row)) for row in words.tolist())


def _results(task: str, weights: str, samples: pd.DataFrame) -> CellSummary:
    score, counts = float(samples["score"].mean()), samples["outcome"].value_counts()
    return CellSummary(
        task=task,
        metric="strict",
        score=score,
        metrics={"strict": score, "parsed": 1 - float(counts.get("unparsed", 0)) / len(samples)},
        n=len(samples),
        samples=1,
        outcomes={name: int(counts.get(name, 0)) for name in OUTCOMES},
        response_tokens_mean=float(samples["tokens"].mean()),
        seconds=36.0,
        weights=weights,
        keys=Keys(generation="g", grading="r", comparability="c"),
    )


def _line(step: int, adapter: str, noise: np.ndarray) -> dict[str, Any]:
    """Return a line of a step log: every field that the harness writes, falling or rising over a hundred steps, with noise."""
    done = 1 - np.exp(-step / 100)
    taught = adapter not in ("sft", "grpo")
    fields = {
        "step": step,
        "loss": 0.8 - 0.5 * done + 0.05 * noise[0],
        "grad_norm": 1 + 0.1 * abs(noise[1]),
        "lr": 1e-5,
        "entropy": 0.9 - 0.4 * done + 0.03 * noise[2],
        "response_tokens_mean": 300 + 10 * noise[3],
        "truncated_share": 0.02 + 0.005 * abs(noise[4]),
        "tokens": 150_000 + int(1000 * noise[5]),
        "seconds": {"generate": 3.0, "teacher": 1.2, "student": 1.9, "step": 6.4},
        "warnings": [],
        "reward_mean": None if taught else 0.5 + 0.2 * done,
    }
    if not taught:
        return fields
    advantage = {
        f"advantage_{q}": value * (1.2 - 0.6 * done) + 0.02 * n
        for (q, value), n in zip(QUANTILES.items(), noise, strict=False)
    }
    return (
        fields
        | advantage
        | {
            "advantage_mean": -0.1 + 0.05 * done + 0.01 * noise[6],
            "routed_fkl": 0.3 - 0.1 * done + 0.01 * noise[7] if adapter.startswith("aopd") else None,
            "fkl_gradient_share": 0.4 if adapter.startswith("aopd") else None,
            "top_k": 32 if adapter.startswith("aopd") else 1,
            "overlap": 0.8 + 0.1 * done,
            "student_top_mass": 0.85 + 0.1 * done,
            "teacher_top_mass": 0.97,
            "pull_up": 0.02 + 0.002 * noise[8],
            "pull_down": 0.01 + 0.001 * noise[9],
        }
    )


def _drift(scale: Scale, stage: int, random: np.random.Generator) -> tuple[DriftSummary, pd.DataFrame]:
    count = scale.drift_items
    rows = pd.DataFrame(
        {
            "task": np.repeat(scale.tasks, count),
            "item_id": [f"{task}-{item:05d}" for task in scale.tasks for item in range(count)],
            "prompt_tokens": 120,
            "response_tokens": 300,
            "kl_to_start": 0.02 * stage + 0.005 * random.random(count * len(scale.tasks)),
            "entropy": 0.6 + 0.05 * random.random(count * len(scale.tasks)),
            "entropy_prompt": 1.5 + 0.05 * random.random(count * len(scale.tasks)),
        }
    )
    by_task: Any = rows.groupby("task", sort=False)[list(DRIFT_FIGURES)].mean()
    tasks = {str(task): {**means, "items": count} for task, means in by_task.to_dict("index").items()}
    found = {**by_task.mean().to_dict(), "tasks": tasks, "answers": "a", "seconds": 20.0}
    return DriftSummary.model_validate(found), rows
