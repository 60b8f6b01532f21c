"""Tables fit the terminal: columns are dropped or continue below, and no cell is cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from harness.terminal.fitted_table import FittedTable, SplitTable


def shown(renderable: RenderableType, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(renderable)
    assert max(map(len, text.getvalue().splitlines())) <= width
    return text.getvalue()


@pytest.fixture
def table() -> Table:
    made = Table("name", title="numbers")
    for header in ("first", "second", "third"):
        made.add_column(header, no_wrap=True, justify="right")
    made.add_row("a row", *(Text(f"{number}.123456789") for number in (1, 2, 3)))
    return made


def test_a_wide_terminal_shows_all_columns(table: Table):
    text = shown(FittedTable(table, ["second", "third"]), 80)
    assert all(f"{number}.123456789" in text for number in (1, 2, 3))
    assert "not shown" not in text


@pytest.mark.parametrize(("width", "kept"), [(48, {1, 3}), (30, {1})])
def test_a_narrow_one_drops_columns_in_the_given_order_and_names_them(table: Table, width: int, kept: set[int]):
    text = shown(FittedTable(table, ["second", "third"]), width)
    assert {number for number in (1, 2, 3) if f"{number}.123456789" in text} == kept
    assert "…" not in text
    left_out = [name for number, name in ((2, "second"), (3, "third")) if number not in kept]
    assert f"not shown at {width} columns: {', '.join(left_out)}" in " ".join(text.split())


def test_a_matrix_goes_on_below_with_its_first_column_again(table: Table):
    text = shown(SplitTable(table), 34)
    assert all(f"{number}.123456789" in text for number in (1, 2, 3))
    assert text.count("a row") == 3
    assert "…" not in text
    assert shown(SplitTable(table), 80).count("a row") == 1
