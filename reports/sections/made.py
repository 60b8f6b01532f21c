"""How the report was made: overlap of training and test sets, runs, weights, packages, hardware and configurations."""

from __future__ import annotations

import json
from typing import Any

from reports import views, words
from reports.findings import Findings
from reports.frames import Frames
from reports.page import Code, Folded, Section, Text

OVERLAP = (
    "Exact: test items whose whole prompt is trained on. 13-gram hits: test items that share 13 words in a row with "
    "a training prompt, templates aside; mean share: how much of these items is shared so. Too short: compared "
    "whole only."
)


def section(findings: Findings) -> Section:
    """Return the section."""
    frames = findings.frames
    overlap = views.overlap_grid(frames)
    shared = [Folded(overlap.title, [Text(OVERLAP, "note"), overlap], opened=True)] if overlap.rows else []
    grids = [views.runs_grid, views.weights_grid, views.packages_grid, views.hardware_grid]
    folded = [Folded(grid.title, [grid]) for grid in (make(frames) for make in grids)]
    configs = [Folded(title, [Code(text)]) for title, text in configurations(frames).items()]
    told = Text(" ".join(words.overlap(frames)), "note")
    return Section("provenance", "How this was made", "How this was made", [told, *shared, *folded, *configs])


def configurations(frames: Frames) -> dict[str, str]:
    """Return each distinct resolved configuration and adapter configuration once, as text by title."""
    found: dict[str, str] = {}
    for run, label in frames.labelled:
        suite = f"Suite, configuration {run.manifest.get('config_hash')}"
        found.setdefault(suite, _as_json(run.manifest.get("config")))
        found.setdefault(f"Adapter {label}", _as_json(run.manifest.get("adapter_config")))
    return found


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
