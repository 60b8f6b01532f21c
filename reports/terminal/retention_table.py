"""The retention table for the terminal: stages down, tasks across, one block per group of seeds."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.terminal.fitted_table import SplitTable
from reports.data.frames import Frames
from reports.document import sentences
from reports.document.blocks import Grid
from reports.document.grids import retention_grids


def print_retention(console: Console, frames: Frames) -> None:
    """Print each group's retention table in %, the stages' own tasks bold, and what is missing.

    A narrow terminal shows the tasks in several tables. `±` is half the 95 % t interval over seeds, in points; it is absent
    with fewer than three seeds.
    """
    for grid in retention_grids(frames.scores, compact=True):
        console.print(SplitTable(_table(grid)))
    for profile in frames.profiles:
        for grid in retention_grids(frames.under(profile).scores, compact=True):
            console.print(SplitTable(_table(replace(grid, title=f"{grid.title}, profile {profile}"))))
    for sentence in sentences.list_missing(frames):
        console.print(f"[yellow]{escape(sentence)}[/yellow]")


def grid_table(grid: Grid) -> SplitTable:
    """Return a page's table for the terminal; a narrow terminal shows its columns in several tables."""
    table = Table(title=Text(grid.title), title_justify="left")
    for number, name in enumerate(grid.header):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return SplitTable(table)


def _table(grid: Grid) -> Table:
    table = Table(title=Text(f"Score in % ({grid.title})"), title_justify="left")
    for number, name in enumerate(grid.header):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=number == 0)
    for i, row in enumerate(grid.rows):
        table.add_row(*(Text(cell, style="bold" if (i, j) in grid.strong else "") for j, cell in enumerate(row)))
    return table
