"""Helpers of task tests: folders, and tasks loaded as lm-eval loads them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tasks"
SHARED_DATA = ROOT.parent / "shared" / "data"

SUMS = ["tiny_arithmetic", "tiny_short_sums", "tiny_long_sums"]
TINY = [*SUMS, "tiny_weather", "tiny_currency", "tiny_calendar", "tiny_reminder"]

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no real records in {SHARED_DATA}")


def load_task(name: str, **metadata: Any) -> Any:
    """Load one task through lm-eval, with `metadata` for its loader."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    return manager.load([name])["tasks"][name]


@cache
def tiny_task(name: str) -> Any:
    """Load one generated task, once for all tests."""
    return load_task(name)


def boxed_folder(folder: Path) -> Path:
    """Write made-up problems with boxed answers, two to train on and two to test, and return their folder."""
    for split, numbers in {"train": (3, 4), "test": (5, 6)}.items():
        records = [{"problem": f"Half of {n}?", "answer": rf"\frac{{{n}}}{{2}}"} for n in numbers]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return folder
