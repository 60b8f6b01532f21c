"""The retention table for the terminal: stages down, tasks across, one block per group of seeds."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.terminal.fitted_table import FittedTable, SplitTable
from reports.data.frames import Frames
from reports.document import sentences
from reports.document.blocks import Grid
from reports.document.grids import retention_grids


def print_retention(console: Console, frames: Frames) -> None:
    """Print each group's retention table in % under the suite's first profile, and what is missing.

    The stages' own tasks are bold. The report has the tables of other profiles, which a last line names. A narrow terminal
    shows the tasks in several tables. `±` is half the 95 % t interval over seeds, in points; it is absent with fewer than
    three seeds.
    """
    for grid in retention_grids(frames.scores, compact=True):
        console.print(SplitTable(_table(grid)))
    if frames.profiles:
        console.print(
            f"[dim]scores under {escape(', '.join(frames.profiles))} are in the report[/dim]", highlight=False
        )
    for sentence in sentences.list_missing(frames):
        console.print(f"[yellow]{escape(sentence)}[/yellow]")


def print_glance(console: Console, grid: Grid) -> None:
    """Print all methods at a glance; a narrow terminal leaves out their numbers of seeds, which other tables have."""
    table = Table(title=Text(grid.title), title_justify="left")
    for number, name in enumerate(grid.header):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=number > 0)
    for row in grid.rows:
        table.add_row(*map(Text, row))
    console.print(FittedTable(table, ["seeds"]))


def _table(grid: Grid) -> Table:
    table = Table(title=Text(f"Score in % ({grid.title})"), title_justify="left")
    for number, name in enumerate(grid.header):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=number == 0)
    for i, row in enumerate(grid.rows):
        table.add_row(*(Text(cell, style="bold" if (i, j) in grid.strong else "") for j, cell in enumerate(row)))
    return table
