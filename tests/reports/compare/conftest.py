"""Two methods, written once for each test that compares them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.reports.compared_runs import HIGH, LOW, write_three


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """OPD and AOPD with three seeds: AOPD learned 0.2 more of each task and forgot 0.3 more."""
    return [write_three(tmp_path, "opd", LOW), write_three(tmp_path, "aopd", HIGH, (0.0, 0.0, 0.0))]
