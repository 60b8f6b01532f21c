"""What runs measured besides scores, as tidy frames: the KL from the start, and the noise of the start's scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.rundir.files import read_results
from harness.rundir.reader import IDENTITY, RunDir, identity
from harness.rundir.records.cell_records import DRIFT_FIGURES, DriftSummary
from harness.rundir.stage_folder import cell_name
from harness.stats.sampling import noise_floor

DRIFT = [*IDENTITY, "stage", "task", *DRIFT_FIGURES, "answers"]
NOISE = [*IDENTITY, "task", "profile", "score", "repeats", "noise_floor"]
Labelled = Iterable[tuple[RunDir, str]]


def drift_frame(runs: Labelled) -> pd.DataFrame:
    """Return one row per run, stage and task, and one with task "" for the mean over tasks; nats per token.

    Runs of versions that did not measure drift have only the mean's row, with nan. `answers` is the digest of prompts and
    answers: rows with the same digest are comparable.
    """
    return pd.DataFrame([row for run, label in runs for row in _drift_rows(run, label)], columns=pd.Index(DRIFT))


def noise_frame(runs: Labelled) -> pd.DataFrame:
    """Return one row per run and cell of a start that was evaluated again: the first score, and the sd of all scores."""
    return pd.DataFrame([row for run, label in runs for row in _noise_rows(run, label)], columns=pd.Index(NOISE))


def _drift_rows(run: RunDir, label: str) -> Iterator[dict[str, Any]]:
    for stage in range(len(run.stages) + 1):
        found = read_results(run.stage(stage).drift, DriftSummary) or DriftSummary()
        for task, figures in {"": found, **found.tasks}.items():
            values = {name: math.nan if (value := getattr(figures, name)) is None else value for name in DRIFT_FIGURES}
            place = {"stage": stage, "task": task, "answers": found.answers}
            yield {**identity(run, label), **place, **values}


def _noise_rows(run: RunDir, label: str) -> Iterator[dict[str, Any]]:
    profiles: Sequence[str] = ["", *run.further_profiles]
    for profile in profiles:
        for task in run.tasks_under(profile):
            cell, start = cell_name(task, profile), run.stage(0)
            repeats = _scores((start.path / "noise" / cell).glob("*"))
            first = _scores([start.cell(cell)])
            if repeats and first:
                found = {"score": first[0], "repeats": len(repeats), "noise_floor": noise_floor([*first, *repeats])}
                yield {**identity(run, label), "task": task, "profile": profile, **found}


def _scores(folders: Iterable[Path]) -> list[float]:
    return [found.score for folder in sorted(folders) if (found := read_results(folder)) is not None]
