"""Tables that fit the terminal: a narrow one gets fewer columns or several tables, never half of a number."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text


@dataclass(frozen=True)
class FittedTable:
    """A table that drops columns until it fits, in the order of their headers in `droppable`.

    A column with `no_wrap` needs the full width of its cells, any other the width of its longest word. A line below the table
    names the columns that were dropped.
    """

    table: Table
    droppable: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        columns, dropped = list(self.table.columns), list[str]()
        for name in self.droppable:
            if _width(self.table, columns, console, options) <= options.max_width:
                break
            columns = [column for column in columns if str(column.header) != name]
            dropped.append(name)
        yield _with_columns(self.table, columns)
        if dropped := [name for name in dropped if name.strip()]:
            yield Text(f"not shown at {options.max_width} columns: {', '.join(dropped)}", style="dim")


@dataclass(frozen=True)
class SplitTable:
    """A table that continues in further tables where it is too wide; each repeats the first column."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        first, *left = self.table.columns
        while left:
            count = len(left)
            while count > 1 and _width(self.table, [first, *left[:count]], console, options) > options.max_width:
                count -= 1
            yield _with_columns(self.table, [first, *left[:count]])
            left = left[count:]


def _width(table: Table, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> int:
    """Return the smallest width, in characters, of a table with these columns."""
    padding, borders = table.padding[1] + table.padding[3], len(columns) + 1 if table.box else 0
    unlimited = options.update(max_width=10_000)

    def needed(column: Column) -> int:
        sizes = [Measurement.get(console, unlimited, cell) for cell in [column.header, *column.cells]]
        return max((size.maximum if column.no_wrap else size.minimum for size in sizes), default=0)

    return sum(max(needed(column), column.width or 0) + padding for column in columns) + borders


def _with_columns(table: Table, columns: Sequence[Column]) -> Table:
    shown = copy.copy(table)
    shown.columns = list(columns)
    return shown
