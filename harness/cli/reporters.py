"""Reporters show results during runs and at their end. They are found by entry point, because reports import the harness.

Runs need no reporter; where none is installed, the command says that nothing renders reports.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape

from harness.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from harness.config.run_spec import RunSpec
    from harness.pipeline.sweeps.study_runs import Plan
    from harness.rundir.process.progress import Event, Report

GROUP = "harness.reporters"
REST = 20  # reports on the way take at most one part in this many of the time


class Reporter(Protocol):
    """The contract of an entry point in the group `harness.reporters`: a module or an object with these functions.

    `specs` are runs of one suite.
    """

    def render(self, specs: Sequence[RunSpec]) -> object:
        """Write a report of what the runs have on disk; called when every method has a stage, and after some of the runs."""
        ...

    def summarise(self, console: Console, specs: Sequence[RunSpec]) -> None:
        """Show the results of finished runs and where their report is."""
        ...

    def write_study(self, console: Console, plan: Plan, page: Path) -> None:
        """Write a study's page from its finished runs and say where it is."""
        ...

    def foresee(self, console: Console, specs: Sequence[RunSpec]) -> None:
        """Print, before any run, how large an effect the runs can show; a reporter need not define it."""
        ...

    def foresee_study(self, console: Console, plan: Plan) -> None:
        """Print, before any run, what a study's runs cannot show; a reporter need not define it."""
        ...


class Reporters:
    """All reporters that are installed, called one after another."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def render(self, specs: Sequence[RunSpec]) -> None:
        """Let every reporter render; a `HarnessError` of one is printed and does not stop the runs."""
        for reporter in _installed():
            try:
                reporter.render(specs)
            except HarnessError as error:
                self.console.print(f"[yellow]no report yet:[/] {escape(str(error))}", highlight=False, soft_wrap=True)

    def summarise(self, specs: Sequence[RunSpec]) -> None:
        """Let every reporter show the results."""
        for reporter in _installed() or self._none(f"The runs are in {specs[0].out / specs[0].suite.name}"):
            reporter.summarise(self.console, specs)

    def foresee(self, specs: Sequence[RunSpec]) -> None:
        """Let every reporter that defines `foresee` print what the runs can show."""
        for reporter in _installed():
            if hasattr(reporter, "foresee"):
                reporter.foresee(self.console, specs)

    def foresee_study(self, plan: Plan) -> None:
        """Let every reporter that defines `foresee_study` print what the study cannot show."""
        for reporter in _installed():
            if hasattr(reporter, "foresee_study"):
                reporter.foresee_study(self.console, plan)

    def write_study(self, plan: Plan, page: Path) -> None:
        """Let every reporter write the study's page."""
        for reporter in _installed() or self._none(f"{page} is not written"):
            reporter.write_study(self.console, plan, page)

    def _none(self, consequence: str) -> list[Reporter]:
        self.console.print(
            f"{consequence}: no installed package renders reports (entry point group {GROUP})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return []


class ReportsOnTheWay:
    """Shows the events of runs, and renders a report after runs and a first one as soon as it compares all methods.

    The first one needs a single evaluated stage of every method that has runs to do (`todo`, a part of `specs`).
    Runs wait for the processor that renders, so reports take at most one part in `REST` of the time; after the last run comes
    none, because the command then reports on all runs. Events may come from another thread than the one that sees runs finish.
    """

    def __init__(
        self, show: Report, reporters: Reporters, specs: Sequence[RunSpec], todo: Sequence[RunSpec] | None = None
    ) -> None:
        self.show, self.reporters, self.specs = show, reporters, specs
        todo = specs if todo is None else todo
        self.entries = {spec.label: spec.entry for spec in todo}
        self.without_stage = set(self.entries.values())
        self.rendered, self.one_at_a_time = False, threading.Lock()
        self.left, self.next_after = len(todo), 0.0

    def __call__(self, event: Event) -> None:
        """Show an event; render where it completes the first stages."""
        self.show(event)
        if event.evaluated:
            self.without_stage.discard(self.entries[event.run])
            if not self.without_stage and not self.rendered:
                try:
                    self._render()
                except Exception as error:  # whoever shows events must go on; a later report raises it again
                    from harness.rundir.process.progress import Event

                    self.show(Event("report", f"no first report: {type(error).__name__}: {error}", warning=True))

    def after_run(self, _: RunSpec) -> None:
        """Render what is on disk now, unless the last report is young or no run is left."""
        self.left -= 1
        if self.left and time.monotonic() >= self.next_after:
            self._render()

    def _render(self) -> None:
        with self.one_at_a_time:
            self.rendered, started = True, time.monotonic()
            self.reporters.render(self.specs)
            ended = time.monotonic()
            self.next_after = ended + (REST - 1) * (ended - started)


def _installed() -> list[Reporter]:
    return [_loaded(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def _loaded(point: EntryPoint) -> Reporter:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the entry point {point.name} = {point.value} of {GROUP} cannot be loaded ({error}); fix or uninstall the "
            "package that registers it"
        ) from error
