"""How the report was made: overlap of training and test sets, runs, weights, packages, hardware, and differing settings."""

from __future__ import annotations

import json
from typing import Any

from harness.rundir.records.overlap_record import NGRAM
from reports.data.frames import Frames
from reports.data.setting_differences import differences_of_report
from reports.document import grids, sentences
from reports.document.blocks import Bullets, Code, Folded, Section, Text
from reports.report.report_data import ReportData

OVERLAP = (
    f"Exact: test items whose whole prompt is also a training prompt. {NGRAM}-gram hits: test items that share {NGRAM} words "
    "in a row with a training prompt, apart from templates. Mean share: the shared part of these items. Too short: items of "
    f"fewer than {NGRAM} words, compared only as a whole."
)


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    frames = report_data.frames
    overlap = grids.overlap_grid(frames)
    shared = [Folded(overlap.title, [Text(OVERLAP, "note"), overlap], opened=True)] if overlap.rows else []
    made = [grids.runs_grid, grids.weights_grid, grids.packages_grid, grids.hardware_grid]
    folded = [Folded(grid.title, [grid]) for grid in (make(frames) for make in made)]
    configs = [Folded(title, [Code(text)]) for title, text in configurations(frames).items()]
    reading = Text(" ".join(sentences.describe_overlap(frames)), "note")
    machine = [Text(found, "note") for found in describe_processors(frames)]
    differing = [Bullets(found)] if (found := differences_of_report(frames)) else []
    blocks = [*machine, reading, *differing, *shared, *folded, *configs]
    return Section("provenance", "How this was made", "How this was made", blocks)


def describe_processors(frames: Frames) -> list[str]:
    """Return a sentence on the processors of the runs' sessions; none where no run recorded any."""
    hardware = [session.hardware for run in frames.runs for session in run.manifest.sessions]
    known = [(found["processor"], found.get("instructions")) for found in hardware if "processor" in found]
    named = dict.fromkeys(f"{name} ({code})" if code else str(name) for name, code in known)
    if not named:
        return []
    return [
        f"Made on {' and '.join(named)}. Another processor rounds differently, so models built from scratch there start "
        "elsewhere and the figures differ."
    ]


def configurations(frames: Frames) -> dict[str, str]:
    """Return by title, as JSON text, each distinct suite configuration without adapter and seed, and each adapter's."""
    suites: dict[str, list[str]] = {}
    adapters: dict[str, str] = {}
    for run, label in frames.labelled:
        config = dict(run.manifest.config)
        entry = config.pop("adapter", None)
        config.pop("seed", None)
        suites.setdefault(_as_json(config), []).append(f"{label}, seed {run.seed}")
        resolved = run.manifest.adapter_config
        adapters.setdefault(f"Adapter {label}", _as_json({"entry": entry, "resolved": resolved} if entry else resolved))
    return {_suite_title(runs, len(suites)): text for text, runs in suites.items()} | adapters


def _suite_title(runs: list[str], suites: int) -> str:
    """Title a configuration, with the runs that it belongs to where there are several configurations."""
    title = "Configuration of the suite, without adapter and seed"
    return title if suites == 1 else f"{title}: {'; '.join(runs)}"


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
