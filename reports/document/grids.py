"""The report's tables as grids of strings, shared by HTML, Markdown and the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.rundir.records.cell_records import OUTCOMES
from harness.rundir.records.overlap_record import OVERLAP_HEADER
from harness.stats.intervals import Interval
from reports.data import tables
from reports.data.frames import PHASES, Frames
from reports.document.blocks import Grid
from reports.document.sentences import describe_warning
from reports.formatting import (
    format_count,
    format_decimal,
    format_interval,
    format_percent,
    format_points,
    shorten_names,
)


def retention_grids(scores: pd.DataFrame, *, compact: bool = False) -> list[Grid]:
    """Return one stage-by-task grid per label, the stage's own task strong; in %, with an interval for several seeds.

    `compact` shortens task names and intervals for a terminal.
    """
    table = tables.retention_table(scores)
    return [_retention_grid(str(label), cells, compact) for label, cells in table.groupby("label", sort=False)]


def _retention_grid(label: str, cells: pd.DataFrame, compact: bool) -> Grid:
    tasks, stages = list(cells["task"].unique()), cells.drop_duplicates("stage")
    names = shorten_names(tasks) if compact else {task: task for task in tasks}
    records, seeds = cells.to_dict("records"), int(cells["seeds"].max())
    marks = {c["task"]: f" ({c['role']})" for c in records if c["role"] != "trained"}
    texts = {(c["stage"], c["task"]): _compact(c) if compact else _value(c["interval"], seeds) for c in records}
    rows = [
        [
            f"after {names.get(trained, trained)}" if trained else "start",
            *(texts.get((stage, task), "–") for task in tasks),
        ]
        for stage, trained in zip(stages["stage"], stages["stage_task"], strict=True)
    ]
    own = frozenset((c["stage"], tasks.index(c["task"]) + 1) for c in records if c["own"])
    header = ["stage", *(names[task] + marks.get(task, "") for task in tasks)]
    return Grid(f"{label}, {format_count(seeds, 'seed')}", header, rows, own)


def _compact(cell: Mapping[Hashable, Any]) -> str:
    interval: Interval = cell["interval"]
    # The t interval of two seeds is 12.7 standard errors wide on each side: too wide to help in a cell.
    # An end at 0 or 100 is cut, so the wider side is half of the t interval.
    half = max(interval.mean - interval.low, interval.high - interval.mean)
    half = f" ±{100 * half:.0f}" if interval.seeds > 2 else ""
    return f"{100 * interval.mean:.0f}{half}" if interval.seeds else "–"


def _value(interval: Interval, expected: int, write: Callable[[float], str] = format_percent) -> str:
    """Write a mean with its interval, and the number of seeds where it is smaller than `expected`."""
    if not interval.seeds:
        return "–"
    fewer = f" ({format_count(interval.seeds, 'seed')})" if interval.seeds < expected else ""
    return format_interval(interval, write) + fewer


def figures_grid(scores: pd.DataFrame) -> Grid:
    """Return one row per figure: its value for each label, its unit, formula and source."""
    table = tables.figure_table(scores)
    labels = list(table["label"].unique())
    seeds = scores.groupby("label")["seed"].nunique()
    counts = {label: "one seed: no interval" if seeds[label] == 1 else f"{seeds[label]} seeds" for label in labels}
    methods = [f"{label} ({counts[label]})" for label in labels]
    rows = []
    for _, cells in table.groupby("figure", sort=False):
        line = cells.iloc[0]
        write = {"%": format_percent, "points": format_points, "ratio": format_decimal}[line["unit"]]
        by_label = {
            cell["label"]: _value(cell["interval"], seeds[cell["label"]], write) for cell in cells.to_dict("records")
        }
        values = [by_label.get(label, "–") for label in labels]
        unit = f"{line['unit']}\u00a0{'↑' if line['higher_is_better'] else '↓'}"
        rows.append([line["title"], *values, unit, "; ".join(cells["formula"].unique()), line["source"]])
    return Grid("Figures", ["figure", *methods, "unit", "formula", "source"], rows)


def outcomes_grid(scores: pd.DataFrame) -> Grid:
    """Return the share of each outcome at the start and at the end, in % of answers, all seeds that have both pooled."""
    rows = []
    for (label, task), cells in tables.outcomes_table(scores).groupby(["label", "task"], sort=False):
        ends = cells.set_index("when").reindex(["start", "end"])
        changes = [" → ".join(format_percent(share) for share in ends[outcome]) for outcome in OUTCOMES]
        rows.append([str(label), str(task), *(f"{cells[name].max():.0f}" for name in ("seeds", "items")), *changes])
    return Grid("Outcomes", ["method", "task", "seeds", "items", *(f"{outcome} %" for outcome in OUTCOMES)], rows)


def several_answers_grid(frames: Frames) -> Grid:
    """Return mean@n and pass@k by task at the start and after the last stage, in %, mean over seeds; no rows without any."""
    table = tables.several_answers_table(frames)
    names = list(table["metric"].unique())
    rows = []
    for (label, task), cells in table.groupby(["label", "task"], sort=False):
        values = cells.pivot(index="when", columns="metric", values="value").reindex(["start", "end"], columns=names)
        ends = (" → ".join(format_percent(value) for value in values[name]) for name in names)
        rows.append([str(label), str(task), str(cells["seeds"].max()), *ends])
    return Grid("Several answers of each item", ["method", "task", "seeds", *(f"{name} %" for name in names)], rows)


def warnings_grid(frames: Frames) -> Grid:
    """Return every warning that training raised: run, stage, step, and the warning in words."""
    rows = [
        [
            row["label"],
            str(row["seed"]),
            f"{row['stage']}: {row['task']}",
            str(row["step"]),
            describe_warning(row["warning"]),
        ]
        for row in frames.warnings.to_dict("records")
    ]
    return Grid("Warnings in training", ["method", "seed", "stage", "step", "warning"], rows)


def cost_grid(frames: Frames) -> Grid:
    """Return the average cost of one run in tokens and seconds by phase, and the peak memory of all runs.

    The last column is the share of time outside generation, teacher, student, evaluation and preparation of models.
    """
    whole = "{:,.0f}".format
    phases = [*PHASES, "evaluate", "models", "total"]
    names = ["whole step" if phase == "step" else phase for phase in phases]
    rows = [
        [row["label"], str(row["runs"]), whole(row["steps"]), whole(row["tokens"])]
        + [_gib(row[f"memory_{phase}"]) for phase in ("train", "evaluate")]
        + [_seconds(row[f"seconds_{phase}"]) for phase in phases]
        + [format_percent(row["share_outside"])]
        for row in tables.cost_table(frames).to_dict("records")
    ]
    first = ["method", "runs", "steps", "tokens", "peak GiB, training", "peak GiB, evaluation"]
    return Grid("Cost", [*first, *(f"{name}\u00a0s" for name in names), "outside\u00a0%"], rows)


def _gib(size: float) -> str:
    return "–" if math.isnan(size) else f"{size / 2**30:.2f}"


def _seconds(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.1f}"


def runs_grid(frames: Frames) -> Grid:
    """Return the provenance of each run: seed, commit, configuration, times and command."""
    rows = []
    for run, label in frames.labelled:
        m, made = run.manifest, run.manifest.made
        code = f"{(made.git.commit or 'unknown')[:12]}{' with local changes' * bool(made.git.dirty)}"
        times = [(made.created or "–")[:16], (m.finished or "not finished")[:16]]
        rows.append([label, str(run.seed), code, m.config_hash or "–", *times, made.command or "–"])
    return Grid("Runs", ["method", "seed", "commit", "configuration", "created", "finished", "command"], rows)


def weights_grid(frames: Frames) -> Grid:
    """Return the digests of the weights that each run used and made."""
    weights = [run.manifest.weights for run in frames.runs]
    names = list(dict.fromkeys(name for digests in weights for name in digests))
    rows = [
        [label, str(run.seed), *(str(digests.get(name, "–")) for name in names)]
        for (run, label), digests in zip(frames.labelled, weights, strict=True)
    ]
    return Grid("Weights", ["method", "seed", *names], rows)


def packages_grid(frames: Frames) -> Grid:
    """Return the package versions; a package that differs between runs shows every version."""
    return _settings_grid("Packages", "package", [run.manifest.made.packages for run in frames.runs])


def hardware_grid(frames: Frames) -> Grid:
    """Return the hardware; what differs between runs shows every value."""
    return _settings_grid("Hardware", "part", [run.manifest.made.hardware for run in frames.runs])


def overlap_grid(frames: Frames) -> Grid:
    """Return the training sets that share prompts or n-grams with a test set; no rows where none does."""
    found = frames.overlap.found if frames.overlap else []
    return Grid("Training prompts in test sets", OVERLAP_HEADER, [row.cells for row in found])


def _settings_grid(title: str, kind: str, settings: Sequence[dict]) -> Grid:
    names = dict.fromkeys(name for setting in settings for name in setting)
    values = {name: dict.fromkeys(str(s.get(name, "absent")) for s in settings) for name in names}
    return Grid(title, [kind, "value"], [[name, " / ".join(found)] for name, found in values.items()])
