"""Records of a run directory with defaults for everything that a test does not set."""

from __future__ import annotations

from typing import Any

from harness.rundir.records.cell_records import CellSummary
from harness.rundir.schema import SCHEMA, Manifest


def manifest_of(**changes: Any) -> Manifest:
    """Return the manifest of a run of one stage."""
    plain: dict[str, Any] = {
        "suite": "tiny",
        "adapter": "opd",
        "kind": "opd",
        "trains_on": ["student"],
        "order": "default",
        "seed": 0,
        "stages": [{"name": "tiny_weather", "trains": ["tiny_weather"], "steps": 2}],
        "probes": [],
    }
    return Manifest.model_validate({"schema": SCHEMA, **plain, **changes})


def cell_of(score: float, **changes: Any) -> CellSummary:
    """Return the summary of a cell."""
    return CellSummary.model_validate({"task": "tiny_weather", "metric": "strict", "score": score, "n": 10, **changes})
