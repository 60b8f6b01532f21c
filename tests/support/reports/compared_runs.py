"""Runs of two methods whose comparison is known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.reports.run_factory import write_run

START = [0.5, 0.1, 0.6]
LOW = [START, [0.6, 0.2, 0.5], [0.4, 0.7, 0.5]]
HIGH = [START, [0.8, 0.2, 0.5], [0.3, 0.9, 0.4]]


def shifted(scores: list[list[float]], by: float) -> list[list[float]]:
    """Return scores whose first task after its stage is moved."""
    return [scores[0], [scores[1][0] + by, *scores[1][1:]], scores[2]]


def write_three(
    tmp_path: Path, adapter: str, scores: list[list[float]], moves=(0.0, 0.1, -0.1), **options: Any
) -> Path:
    for seed, move in enumerate(moves):
        write_run(tmp_path, adapter, seed, shifted(scores, move), **options)
    return tmp_path / "tiny" / adapter
