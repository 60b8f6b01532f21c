"""Checkpoints that were trained elsewhere: their score matrix on a suite's tasks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.table import Table

from harness.checkpoints import context_of, load_renderer, weights_digest
from harness.config import Suite
from harness.errors import ModelError
from harness.lmeval.checks import check_test_prompts, settle_generation
from harness.lmeval.evaluate import Subject, evaluate
from harness.lmeval.shared import SharedCells
from harness.lmeval.tasks import TaskLibrary
from harness.models import limit_threads, resolve_device
from harness.store import stderr_to, write_cell


def evaluate_checkpoints(suite: Suite, checkpoints: Sequence[Path], out: Path) -> pd.DataFrame:
    """Evaluate each checkpoint on all tasks of a suite; return scores with one row per checkpoint.

    Results go to `<out>/<suite>/checkpoints/<n>_<name>/<task>/`, the matrix to `matrix.csv` beside them.
    """
    limit_threads(suite.threads)
    library = TaskLibrary(suite.include, suite.data)
    tasks = [library.load(name) for name in suite.tasks]
    for task in tasks:
        settle_generation(task, suite.evaluation.decoding)
    folder = out / suite.name / "checkpoints"
    for checkpoint in checkpoints:
        if not checkpoint.is_dir():
            raise ModelError(f"checkpoint {checkpoint} is not a folder; give folders with weights and tokenizer")
        check_test_prompts(
            tasks, load_renderer(checkpoint, suite.student), context_of(checkpoint), suite.evaluation.limit
        )
    rows: dict[str, dict[str, float]] = {}
    for index, checkpoint in enumerate(checkpoints):
        device = resolve_device(suite.device)
        subject = Subject(checkpoint, weights_digest(checkpoint), suite.student.chat, suite.student.dtype, device)
        with stderr_to(folder / "log.txt"):
            cells = evaluate(subject, tasks, library, suite.evaluation, SharedCells(out))
        shutil.rmtree(folder / f"{index}_{checkpoint.name}", ignore_errors=True)
        for task, cell in cells.items():
            write_cell(folder / f"{index}_{checkpoint.name}" / task, {**cell.summary, "stage": index}, cell.samples)
        rows[str(checkpoint)] = {task: cell.summary["score"] for task, cell in cells.items()}
    scores = pd.DataFrame.from_dict(rows, orient="index")
    scores.to_csv(folder / "matrix.csv", index_label="checkpoint")
    return scores


def matrix_table(scores: pd.DataFrame) -> Table:
    """Return a score matrix (checkpoints by tasks, 0..1) as percentages for the terminal."""
    table = Table(title="score, %")
    table.add_column("checkpoint", overflow="fold")
    for task in scores.columns:
        table.add_column(str(task), justify="right", overflow="fold", min_width=5)
    for name, row in scores.iterrows():
        table.add_row(str(name), *(f"{100 * score:.1f}" for score in row))
    return table
