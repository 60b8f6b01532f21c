"""Cells shared between runs: a killed process's half-written cell is removed, and a changed cell is not used."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import RunError
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.rundir.records.cell_records import Keys
from tests.support.reports.records import cell_of

KEYS = Keys(generation="g" * 16, grading="r" * 16)


def test_what_a_killed_process_left_of_a_shared_cell_is_removed_by_the_next_one(tmp_path: Path):
    shared = SharedCells(tmp_path)
    left = shared.folder / f".{KEYS.generation}-{KEYS.grading}.abcdefgh"
    other = shared.folder / ".another-cell.abcdefgh"
    for folder in (left, other):
        folder.mkdir(parents=True)
    shared.put(KEYS, CellResult(cell_of(1), pd.DataFrame({"score": [1.0]})))
    assert not left.exists()
    assert other.exists(), "another process may be writing it"
    assert shared.get(KEYS) is not None


def test_a_shared_cell_whose_score_was_changed_is_not_taken(tmp_path: Path):
    shared = SharedCells(tmp_path)
    shared.put(KEYS, CellResult(cell_of(0.5), pd.DataFrame({"score": [0.5]})))
    (file,) = shared.folder.glob("*/results.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "score": 1.0}))
    with pytest.raises(RunError, match="was changed from outside"):
        shared.get(KEYS)


def test_two_processes_with_one_checkpoint_take_different_profiles(tmp_path: Path):
    one, other = SharedCells(tmp_path), SharedCells(tmp_path)
    with one.locked("w", ["greedy", "paper"]) as first, other.locked("w", ["greedy", "paper"]) as second:
        assert (first, second) == ("greedy", "paper")
        with SharedCells(tmp_path).locked("v", ["greedy"]) as third:
            assert third == "greedy", "another checkpoint's cells"


def test_where_another_process_holds_every_profile_this_one_waits(tmp_path: Path):
    entered, taken = threading.Event(), list[str]()

    def take() -> None:
        with SharedCells(tmp_path).locked("w", ["greedy"]) as profile:
            taken.append(profile)
            entered.set()

    waiting = threading.Thread(target=take)
    with SharedCells(tmp_path).locked("w", ["greedy"]):
        waiting.start()
        assert not entered.wait(0.3)
    waiting.join(30)
    assert taken == ["greedy"]
