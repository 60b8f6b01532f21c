"""Share evaluated cells between runs, so that the common start of all adapters is evaluated once."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.rundir.files import read_cell, write_cell
from harness.rundir.locks import waiting_lock
from harness.rundir.records.cell_records import CellSummary, Keys


@dataclass(frozen=True)
class CellResult:
    """One task's result on one checkpoint: the summary that results.json holds, and one row per item and answer."""

    summary: CellSummary
    samples: pd.DataFrame


class SharedCells:
    """Cells in `<folder>/evaluations/`, named by their generation and grading keys, which include the weights.

    All suites that write below `folder` share them: no key depends on a suite's name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "evaluations"

    def locked(self, weights: str) -> AbstractContextManager[None]:
        """Return the lock on a checkpoint's cells: of several processes, one evaluates it and the others wait."""
        return waiting_lock(self.folder / f"{weights}.lock")

    def get(self, keys: Keys) -> CellResult | None:
        """Return the cell with these keys, or None."""
        found = read_cell(self._path(keys))
        return CellResult(*found) if found else None

    def with_answers(self, keys: Keys) -> CellResult | None:
        """Return a cell with the generation key of `keys` and any grades; None where there is none."""
        for folder in sorted(self.folder.glob(f"{keys.generation}-*")):
            if (found := read_cell(folder)) is not None:
                return CellResult(*found)
        return None

    def put(self, keys: Keys, cell: CellResult) -> None:
        """Store a cell for other runs, and remove what a killed process left of it; call it while holding `locked`."""
        folder = self._path(keys)
        for partial in self.folder.glob(f".{folder.name}.*"):
            shutil.rmtree(partial, ignore_errors=True)
        write_cell(folder, cell.summary, cell.samples)

    def _path(self, keys: Keys) -> Path:
        return self.folder / f"{keys.generation}-{keys.grading}"
