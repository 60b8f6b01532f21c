"""A live view of runs from their directories: what each does now, its progress, and its training figures.

Everything comes from the files that a run writes, so any terminal that can read them can follow, on another machine too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.rundir.locks import is_held
from harness.rundir.process.progress import METRIC_NAMES, sparkline
from harness.rundir.reader import RunDir, find_runs
from harness.rundir.records.training_records import StepLine
from harness.rundir.store import LOCK
from harness.terminal.fitted_table import FittedTable
from harness.terminal.sanitize import show_hidden

RECENT = 20
QUIET_SECONDS = 60.0  # a run that wrote something within this time is running


@dataclass(frozen=True)
class Status:
    """One run's state: its stage's steps `done` of `total`, the stage's seconds left, and the figures by step."""

    label: str
    activity: str
    done: int
    total: int
    seconds_left: float | None
    figures: dict[str, list[float]]
    warnings: int
    idle_seconds: float
    finished: bool
    stopped: bool = False


def show_until_finished(console: Console, folders: Iterable[Path], every: float = 2.0, once: bool = False) -> None:
    """Show runs until all are finished, read again every `every` seconds; `once` shows them a single time."""
    folders = list(folders)
    if once:
        console.print(view([status(run) for run in find_runs(folders)]))
        return
    named = ", ".join(map(str, folders))
    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = [status(run) for run in _started(folders)]
            live.update(view(statuses) if statuses else f"No run has started in {named} yet.", refresh=True)
            if statuses and all(found.finished for found in statuses):
                return
            time.sleep(every)


def _started(folders: Iterable[Path]) -> list[RunDir]:
    """Return the runs in folders that hold a manifest; a folder without one may get its first run later."""
    return find_runs([folder for folder in folders if any(folder.rglob("manifest.json"))])


def status(run: RunDir, now: float | None = None) -> Status:
    """Return a run's state, from its manifest, step logs and evaluated cells."""
    label = " ".join([run.suite, run.adapter, *([run.order] if run.order != "default" else []), f"seed {run.seed}"])
    lines = [_steps(run, stage) for stage in range(1, len(run.stages) + 1)]
    stage, activity = _place(run, lines)
    present = lines[stage - 1] if stage else []
    total = run.steps[stage - 1] if stage else 0
    everything = [line for stage_lines in lines for line in stage_lines]
    idle = (time.time() if now is None else now) - _last_written(run.path)
    stopped = not run.manifest.finished and idle > QUIET_SECONDS and not is_held(run.path / LOCK)
    if stopped:
        activity = f"{activity}: stopped {_ago(idle)}, the same command continues"
    return Status(
        label=label,
        activity=activity,
        done=len(present),
        total=total,
        seconds_left=None if stopped else _seconds_left(present, total),
        figures={name: [v for line in everything if (v := getattr(line, name)) is not None] for name in METRIC_NAMES},
        warnings=sum(len(line.warnings or ()) for line in everything),
        idle_seconds=idle,
        finished=bool(run.manifest.finished),
        stopped=stopped,
    )


def view(statuses: Sequence[Status]) -> FittedTable:
    """Return one row per run: stage, progress, steps, time left, and each figure's last value and sparkline."""
    figures = [name for name in METRIC_NAMES if any(found.figures[name] for found in statuses)]
    table = Table(title="runs", title_justify="left")
    for name in ("run", "now", "progress", "steps", "left", *(METRIC_NAMES[name] for name in figures)):
        table.add_column(name, no_wrap=name not in {"run", "now"}, overflow="fold")
    for name in figures:
        table.add_column(f"{METRIC_NAMES[name]} over time", no_wrap=True)
    table.add_column("written", no_wrap=True)
    for found in statuses:
        table.add_row(
            Text(show_hidden(found.label), style="bold"),
            _activity(found),
            ProgressBar(total=max(found.total, 1), completed=found.done, width=16),
            f"{found.done}/{found.total}" if found.total else "",
            "" if found.seconds_left is None else clock(found.seconds_left),
            *(f"{found.figures[name][-1]:.3g}" if found.figures[name] else "" for name in figures),
            *(sparkline(found.figures[name]) for name in figures),
            "" if found.finished else f"{clock(found.idle_seconds)} ago",
        )
    courses = [f"{METRIC_NAMES[name]} over time" for name in reversed(figures)]
    values = [METRIC_NAMES[name] for name in reversed(figures)]
    return FittedTable(table, [*courses, "progress", *values, "written"])


def clock(seconds: float) -> str:
    """Write seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _ago(seconds: float) -> str:
    for name, size in (("days", 86_400), ("hours", 3_600), ("min", 60)):
        if seconds >= 2 * size or name == "min":
            return f"{max(1, round(seconds / size))} {name} ago"
    return ""


def _place(run: RunDir, lines: Sequence[Sequence[Any]]) -> tuple[int, str]:
    """Return a run's present stage, 0 for the start, and its activity in words."""
    if run.manifest.finished:
        return len(run.stages), "finished"
    reached = max((number for number, found in enumerate(lines, start=1) if found), default=0)
    if reached == 0 and not run.evaluated(0):
        return 0, "evaluate the start"
    if reached and run.stage(reached).training_done is None:
        return reached, f"stage {reached} {run.stages[reached - 1]}"
    if reached and not run.evaluated(reached):
        return reached, f"evaluate after {run.stages[reached - 1]}"
    return min(reached + 1, len(run.stages)), f"begin stage {min(reached + 1, len(run.stages))}"


def _activity(found: Status) -> Text:
    text = Text(show_hidden(found.activity), style="green" if found.finished else "red" if found.stopped else "")
    if found.warnings:
        text.append(f" ({found.warnings} warning{'s' if found.warnings > 1 else ''})", style="yellow")
    return text


def _seconds_left(lines: Sequence[StepLine], total: int) -> float | None:
    """Return the seconds that the remaining steps take at the mean pace of the last ones; None where it is not known."""
    paces = [pace for line in lines[-RECENT:] if (pace := (line.seconds or {}).get("step"))]
    return sum(paces) / len(paces) * (total - len(lines)) if paces and len(lines) < total else None


def _steps(run: RunDir, stage: int) -> list[StepLine]:
    """Return a stage's steps; of a step that was repeated after a kill, the last line counts."""
    return list({line.step: line for line in run.step_lines(stage)}.values())


def _last_written(path: Path) -> float:
    times: list[float] = []
    for file in path.rglob("*"):
        try:
            times.append(file.stat().st_mtime)
        except FileNotFoundError:  # the file was moved to its place in the meantime
            continue
    return max(times, default=path.stat().st_mtime)
