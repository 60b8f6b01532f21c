"""What a study's methods kept at equal learning, from each start; the methods need not have learned equally at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from reports.data.learning_curves import equal_learning_rows
from reports.document.blocks import Block, Text
from reports.report.sections.curves_section import READING, equal_learning_grid
from reports.study.study_results import Results


def equal_learning_blocks(results: Results) -> list[Block]:
    """Return a table of every entry against its reference, at the suite's own settings; empty where no run has curves."""
    table = pd.DataFrame(_rows(results))
    if not len(table):
        return []
    blocks: list[Block] = []
    for profile, rows in table.groupby("profile", sort=False):
        grid = equal_learning_grid(rows)
        blocks.append(replace(grid, title=f"{grid.title}, {profile} decoding") if results.profile else grid)
    return [*blocks, Text(READING, "note")]


def _rows(results: Results) -> Iterator[dict[str, object]]:
    pairs = results.layout.all_contrasts
    for start in results.layout.starts:
        where = f"{start} start: " if start and len(results.layout.starts) > 1 else ""
        for entry, reference in pairs:
            base, other = (results.method(results.layout.own(start, name)) for name in (reference, entry))
            if base is not None and other is not None:
                for row in equal_learning_rows(base, other):
                    yield {**row, "label": f"{where}{row['label']}"}
        branches = {method.first.adapter: method for method in results.branches if method.first.start == start}
        for entry, reference in pairs:
            if entry in branches and reference in branches:
                after = ", ".join(branches[entry].first.manifest.trained_before)
                for row in equal_learning_rows(branches[reference], branches[entry]):
                    if row["stage"] == branches[entry].branch_stage:
                        yield {**row, "label": f"{where}from one checkpoint after {after}: {row['label']}"}
