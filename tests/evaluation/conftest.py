"""What tests of the evaluator share: a store of cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.evaluation.cell_cache import SharedCells


@pytest.fixture
def shared(tmp_path: Path) -> SharedCells:
    return SharedCells(tmp_path / "shared")
