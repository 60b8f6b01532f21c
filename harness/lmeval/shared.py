"""Evaluated cells shared between runs: the common start of all adapters is generated once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from harness.lmeval.keys import Keys
from harness.store import read_cell, write_cell


@dataclass(frozen=True)
class Cell:
    """One task's result on one checkpoint: the summary that results.json holds, and one row per item."""

    summary: dict[str, Any]
    samples: pd.DataFrame


class SharedCells:
    """Cells under `<folder>/evaluations/`, named by their generation and grading keys, so by the weights too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "evaluations"

    def get_or_make(self, keys: Keys, make: Callable[[], Cell]) -> Cell:
        """Return the cell with these keys; of several processes that ask at once, one makes it and the others wait."""
        folder = self.folder / f"{keys.generation}-{keys.grading}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (found := read_cell(folder)) is None:
                cell = make()
                write_cell(folder, cell.summary, cell.samples)
                return cell
        return Cell(*found)
