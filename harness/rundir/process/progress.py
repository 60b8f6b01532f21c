"""Progress of runs: the events that a run reports, and the terminal display that shows them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

# Figures of a step that are drawn, with their names.
METRIC_NAMES = {"entropy": "entropy", "reward_mean": "reward", "teacher_agreement": "agreement"}
OTHER_COLUMNS = 90  # characters of a line without the figures, with long names
NARROWEST, WIDEST = 4, 16  # characters of a sparkline
ROOMY = 100  # characters of a line below which bars are short
LOG_SECONDS = 60.0  # between two lines of one activity where no terminal shows a bar
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Event:
    """A message from a run: its name, what it does, how far it is, and its latest figures; or a warning, in `activity`.

    `evaluated` is the stage whose evaluation has ended; 0 in all other messages, and for the start.
    """

    run: str
    activity: str
    done: int = 0
    total: int | None = None
    finished: bool = False
    warning: bool = False
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    evaluated: int = 0


Report = Callable[[Event], None]


def silent(_: Event) -> None:
    """Ignore events."""


class Counter:
    """Counts the steps of a run's activity and reports each."""

    def __init__(self, report: Report, run: str, activity: str, total: int) -> None:
        self.report, self.run, self.activity, self.total, self.done = report, run, activity, total, 0
        report(Event(run, activity, 0, total))

    def next(self, _: object = None) -> None:
        """Count one step more; the argument is ignored, so that this can be a callback."""
        self.reach(self.done + 1)

    def reach(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Report that `done` steps are done, with the last one's figures; a resumed stage begins above 0."""
        self.done = done
        self.report(Event(self.run, self.activity, done, self.total, figures=figures or {}))


class Display:
    """A bar per run with its name, activity, steps, time elapsed and left, and its figures as sparklines.

    Where the console is not a terminal, it prints lines instead: one at the start of an activity and one each minute.
    """

    def __init__(self, console: Console) -> None:
        bar = BarColumn(bar_width=12 if console.width >= ROOMY else 4)
        self.progress = Progress(
            # In a narrow terminal names continue on a second line, so that no digit is cut off.
            TextColumn("[bold]{task.fields[run]}", table_column=Column(overflow="fold")),
            TextColumn("{task.description}", table_column=Column(overflow="fold")),
            *map(_WhileWorking, [bar, MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]),
            TextColumn("{task.fields[course]}"),
            console=console,
        )
        self.bars: dict[str, TaskID] = {}
        self.activities: dict[str, str] = {}
        self.warnings: set[str] = set()
        self.courses: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.logged: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event; a new activity starts its own count and clock, and a warning of several runs is shown once."""
        if event.warning:
            if event.activity not in self.warnings:
                self.warnings.add(event.activity)
                self.progress.console.print(f"[yellow]warning:[/] {escape(event.activity)}", highlight=False)
            return
        if event.run not in self.bars:
            fields: dict[str, Any] = {"run": event.run, "course": "", "finished": False}
            self.bars[event.run] = self.progress.add_task(event.activity, total=event.total, **fields)
            self.first[event.run] = time.monotonic()
        bar = self.bars[event.run]
        if self.activities.get(event.run) != event.activity:
            self.activities[event.run] = event.activity
            self.progress.reset(bar, description=event.activity, total=event.total)
            self.began[event.run] = time.monotonic(), event.done
            self.logged.pop(event.run, None)
        self._log_when_not_a_terminal(event)
        self.progress.update(bar, completed=event.done, total=event.total, course=self._course(event))
        if event.finished:
            took = timedelta(seconds=round(time.monotonic() - self.first[event.run]))
            self.progress.update(bar, completed=1, total=1, description=f"{event.activity} in {took}", finished=True)
            self.progress.stop_task(bar)

    def _course(self, event: Event) -> str:
        """Return the run's figures over all of its stages as sparklines, with the last values; empty without room."""
        figures = self.courses[event.run]
        for name in METRIC_NAMES:
            if name in event.figures:
                figures[name].append(event.figures[name])
        width = (self.progress.console.width - OTHER_COLUMNS) // max(1, len(figures)) - len("entropy  0.123  ")
        if width < NARROWEST:
            return ""
        lines = {name: sparkline(values, min(width, WIDEST)) for name, values in figures.items()}
        return "  ".join(f"{METRIC_NAMES[name]} {line} {figures[name][-1]:.3g}" for name, line in lines.items())

    def _log_when_not_a_terminal(self, event: Event) -> None:
        """Print time, step, figures and time left, at the start of an activity and then each minute."""
        now = time.monotonic()
        if self.progress.console.is_terminal or now - self.logged.get(event.run, -math.inf) < LOG_SECONDS:
            return
        self.logged[event.run] = now
        parts = [event.activity]
        if event.total:
            parts.append(f"{event.done}/{event.total}")
        parts += [f"{METRIC_NAMES.get(name, name)} {value:.4g}" for name, value in event.figures.items()]
        started, first = self.began[event.run]
        if event.total and event.done > first:
            left = (now - started) / (event.done - first) * (event.total - event.done)
            parts.append(f"about {timedelta(seconds=round(left))} left")
        line = f"{datetime.now().astimezone():%H:%M:%S} {event.run}: {', '.join(parts)}"
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _WhileWorking(ProgressColumn):
    """A column that is empty once a run has finished, because bar and clocks are those of its last activity only."""

    max_refresh = None

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self.column = column

    def render(self, task: Task) -> RenderableType:
        """Return the column, or nothing."""
        return "" if task.fields["finished"] else self.column.render(task)


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Return a line of at most `width` blocks, each the mean of a part of the series; values that are not finite are left out.

    The lowest block is the smallest mean and the highest block the largest; a constant series is drawn low.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return ""
    means = np.array([part.mean() for part in np.array_split(known, min(width, known.size))])
    spread = np.ptp(means)
    heights = (means - means.min()) / spread if spread else np.zeros_like(means)
    return "".join(BLOCKS[level] for level in np.rint(heights * (len(BLOCKS) - 1)).astype(int))
