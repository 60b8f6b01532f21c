"""Render a comparison: one table per method against the baseline, on the terminal, as Markdown, LaTeX and CSV.

Differences are in percentage points (entropy: nats).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.stats.looks import ALPHA
from harness.stats.paired import Difference
from reports.compare.comparison import Comparison, StageComparison
from reports.compare.rows import AVERAGE, ComparisonRow, comparison_table, comparison_table_by_seed
from reports.data.csv_text import to_csv_text
from reports.document.rendering import escape_markdown
from reports.document.text_tables import latex_table, markdown_table
from reports.formatting import (
    format_bounds,
    format_nats,
    format_nats_change,
    format_p,
    format_percent,
    format_points,
    shorten_names,
)

UNITS = "Scores in %, differences in points, entropy in nats."
OVER_SEEDS = (
    "Brackets: 95 % t interval over seeds of the paired difference. p: the larger one of the t test over seeds and the test "
    "for another seed and other items, after Holm."
)
OVER_GROUPS = (
    "Brackets: Welch's 95 % interval over two groups of seeds, which are not paired. p: the larger one of Welch's test and "
    "the test for another seed and other items, after Holm."
)
OVER_ITEMS = (
    "{rows} of one seed: brackets are 95 % intervals over its items, p is the test that they invert, and neither says "
    "anything about other seeds."
)
FORMATS = ("markdown", "csv", "latex")
READING = {
    "95 %": "the interval for another seed and other items of the same kind, from the variances by seed, by item and by both; "
    "with one seed it is over items alone and says nothing about other seeds.",
    "Over seeds": "the interval for another seed on the same items.",
    "Over items": "the interval for other items with the same seeds; items of one cluster (phrasings of one question) count "
    "together.",
    "p": "the test that the interval inverts or, where its p is larger, the t test over seeds, adjusted after Holm over a "
    "figure's tasks and all methods compared.",
    "Lost": "items that are right for the baseline (or the earlier stage) and not for the method (or the later stage), added "
    "over seeds; an item with several answers is right where all of them are.",
    "Gained": "the reverse.",
    "sd": "standard deviation of one seed's difference due to seeds, and due to items.",
    "Detects": "the smallest difference for which the interval excludes zero in 80 % of repeats.",
    "Kept at equal learning": "how the first stage's task and those that no stage trains changed since a stage began, "
    "averaged over the learning that both methods reach on their learning curves.",
}


def method_tables(compared: Comparison | StageComparison) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each method's title and table of texts, in the order given; empty columns are left out."""
    for names in _pairs(compared):
        table = pd.DataFrame([_texts(row) for row in compared.rows if (row.base, row.other) == names])
        filled = [bool((table[name] != "–").any()) for name in table.columns]
        yield f"{names[1]} minus {names[0]}", table.loc[:, filled]


def print_comparison(console: Console, compared: Comparison | StageComparison) -> None:
    """Print the tables and notes; rows whose p is at most 5 % after Holm's adjustment are bold."""
    for names in _pairs(compared):
        rows = [row for row in compared.rows if (row.base, row.other) == names]
        console.print(_terminal(f"{names[1]} minus {names[0]}", rows))
    for note in compared.notes():
        console.print(f"[yellow]{escape(note)}[/yellow]", highlight=False)


def write_comparison(compared: Comparison | StageComparison, folder: Path, sentences: Sequence[str] = ()) -> list[Path]:
    """Write compare.md, compare.tex (booktabs), compare.csv and compare_by_seed.csv below `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "compare.md": to_markdown(compared, sentences),
        "compare.tex": to_latex(compared),
        "compare.csv": to_csv(compared),
        "compare_by_seed.csv": to_csv_text(comparison_table_by_seed(compared.rows)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def render_comparison(compared: Comparison | StageComparison, kind: str, sentences: Sequence[str] = ()) -> str:
    """Return the comparison in one of FORMATS."""
    if kind == "markdown":
        return to_markdown(compared, sentences)
    return to_csv(compared) if kind == "csv" else to_latex(compared)


def to_markdown(compared: Comparison | StageComparison, sentences: Sequence[str] = ()) -> str:
    """Return the sentences, tables, how to read them, and notes as Markdown."""
    parts = [escape_markdown(sentence) for sentence in sentences]
    for title, table in method_tables(compared):
        parts += [f"## {escape_markdown(title)}", markdown_table(table)]
    reading = "\n".join(f"- {term}: {meaning}" for term, meaning in READING.items())
    return "\n\n".join([*parts, reading, *map(escape_markdown, compared.notes())]) + "\n"


def to_latex(compared: Comparison | StageComparison) -> str:
    """Return one LaTeX table per method with the columns that fit a page; it needs the package booktabs only."""
    tables: list[str] = []
    for names in _pairs(compared):
        rows = [row for row in compared.rows if (row.base, row.other) == names]
        note = " ".join([UNITS, *_brackets(rows), *compared.notes(names[1])])
        tables.append(latex_table(_on_a_page(rows), f"{names[1]} minus {names[0]}", note))
    return "% Put \\usepackage{booktabs} into the preamble.\n" + "\n".join(tables)


def to_csv(compared: Comparison | StageComparison) -> str:
    """Return every figure in full precision, one line per row."""
    return to_csv_text(comparison_table(compared.rows))


def _pairs(compared: Comparison | StageComparison) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.base, row.other) for row in compared.rows))


def _on_a_page(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """Return the columns that fit a page; the bracket is over seeds, of one seed over its items."""
    found = []
    for row in rows:
        texts = _texts(row)
        bracket = texts["over seeds" if row.difference.seeds.seeds > 1 else "95 %"]
        change = f"{texts['difference']} {bracket}" if bracket != "–" else texts["difference"]
        kept = {name: texts[name] for name in ("", row.base, row.other)}
        found.append(
            {**kept, "difference": change, "p, Holm": texts["p, Holm"], "seeds × items": texts["seeds × items"]}
        )
    return pd.DataFrame(found)


def _brackets(rows: Sequence[ComparisonRow]) -> Iterator[str]:
    """Say what the brackets of a table are: over pairs of seeds, over two groups of seeds, or over items of one seed."""
    several = [row.difference for row in rows if row.difference.seeds.seeds > 1]
    if several:
        yield OVER_SEEDS if all(each.by_seed for each in several) else OVER_GROUPS
    if any(row.difference.seeds.seeds == 1 for row in rows):
        yield OVER_ITEMS.format(rows="Rows" if several else "All rows are")


def _texts(row: ComparisonRow) -> dict[str, str]:
    found = row.difference
    nats = row.quantity.unit == "nats"
    level, change = (format_nats, format_nats_change) if nats else (format_percent, format_points)
    sd = [math.sqrt(value) for value in (found.variances.seeds, found.variances.items)]
    return {
        "": f"{row.title}{', nats' * nats}",
        row.base: level(found.base),
        row.other: level(found.other),
        "difference": change(found.interval.mean),
        "95 %": format_bounds(found.interval, change),
        "over seeds": format_bounds(found.seeds, change),
        "over items": format_bounds(found.items, change),
        "p, Holm": row.learning if not row.judged else format_p(row.adjusted),
        "lost / gained": f"{found.lost} / {found.gained}" if found.flips else "–",
        "sd seeds; items": "; ".join(level(value) for value in sd) if found.item_count else "–",
        "detects": level(found.detectable),
        "noise": level(row.noise),
        "seeds × items": f"{found.seeds.seeds} × {_items(found)}",
    }


def _items(found: Difference) -> str:
    """Write the number of items, with the number of independent ones where that is smaller."""
    if not found.item_count:
        return "–"
    independent = round(found.clusters)
    return f"{found.item_count}{f' ({independent} independent)' if independent < found.item_count else ''}"


def _terminal(title: str, rows: Sequence[ComparisonRow]) -> Table:
    """Draw a table of two lines a row, so that it fits 80 columns; its header says which is which."""
    table = Table(title=Text(f"{title}, in points"), title_justify="left", box=box.SIMPLE, padding=(0, 1))
    names = (f"{rows[0].base}\n{rows[0].other}", "difference\nn", "95 %\nover seeds", "p, Holm\ndetects")
    table.add_column("", overflow="fold", ratio=1)
    for name in (*names, "lost / gained\nover items"):
        table.add_column(Text(name), justify="right", overflow="fold", no_wrap=name.startswith("95 %"))
    short = shorten_names([row.task for row in rows if row.task not in ("", AVERAGE)]) | {AVERAGE: AVERAGE}
    for row in rows:
        cells = {name: text.replace("\u00a0", " ") for name, text in _texts(row).items()}
        lines = (
            (row.base, row.other),
            ("difference", "seeds × items"),
            ("95 %", "over seeds"),
            ("p, Holm", "detects"),
            ("lost / gained", "over items"),
        )
        unit = "nats" if row.quantity.unit == "nats" else ""
        stacked = [f"{cells[above]}\n{cells[below]}" for above, below in lines]
        title = f"{row.quantity.short}\n{short.get(row.task, unit)}"
        table.add_row(*map(Text, (title, *stacked)), style="bold" if row.adjusted <= ALPHA else "")
    return table
