"""Tasks with settled generation, checkpoints with another configuration, and evaluations of a folder of tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness.config.evaluation import Decoding, Evaluation
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import ServedCheckpoint, evaluate
from harness.lmeval.decoding import settle_generation
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task

# As Qwen3's own: an undefined flag thinks, and so does one that is None.
THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<no thinking>{% endif %}"
)


def settled(library: TaskLibrary, *names: str, **decoding: Any) -> list[Task]:
    tasks = [library.load(name) for name in names]
    for task in tasks:
        settle_generation(task, Decoding.model_validate({"max_gen_toks": 24, **decoding}))
    return tasks


def with_config(folder: Path, target: Path, **changes: Any) -> Path:
    """Return a copy of a checkpoint whose config.json says something else, with the same weights."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def cells(folder: Path, subject: ServedCheckpoint, out: Path, *names: str, **settings: Any) -> dict[str, CellResult]:
    """Evaluate the tasks in a folder as their files say."""
    library = TaskLibrary([folder])
    tasks = [library.load(name) for name in names]
    for task in tasks:
        settle_generation(task, Decoding())
    return evaluate(subject, tasks, library, Evaluation.model_validate(settings), SharedCells(out))
