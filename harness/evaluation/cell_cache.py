"""Share evaluated cells between runs, so that the common start of all adapters is evaluated once."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.rundir.files import read_cell, write_cell
from harness.rundir.locks import first_free_lock, waiting_lock
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

    @contextmanager
    def locked(self, weights: str, profiles: Sequence[str] = ("",)) -> Generator[str]:
        """Lock one profile of a checkpoint and yield its name.

        Processes with the same checkpoint thus evaluate different profiles. If all are locked, wait for the first.
        """
        names = {self.folder / f"{weights}.{profile or 'plain'}.lock": profile for profile in profiles}
        with first_free_lock(list(names)) as path:
            yield names[path]

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
        """Store a cell for other runs, and remove what a killed process left of it."""
        folder = self._path(keys)
        # Suites may have one cell under profiles of different names, so the lock on a profile does not keep them apart.
        with waiting_lock(self.folder / f"{cell.summary.weights}.lock"):
            for partial in self.folder.glob(f".{folder.name}.*"):
                shutil.rmtree(partial, ignore_errors=True)
            write_cell(folder, cell.summary, cell.samples)

    def _path(self, keys: Keys) -> Path:
        return self.folder / f"{keys.generation}-{keys.grading}"
