"""Evaluate checkpoints that were trained elsewhere: their score matrix on a suite's tasks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table

from harness.config.suite import Suite
from harness.engines.engine_pool import EnginePool
from harness.errors import ModelError
from harness.evaluation.cell_cache import SharedCells
from harness.evaluation.evaluator import ServedCheckpoint, evaluate_checkpoint
from harness.evaluation.groups import EvaluationPlan, group_cell, load_evaluation_plan
from harness.lm.checkpoints import allow_own_code, context_of, load_renderer, weights_digest
from harness.lmeval.checks import check_test_prompts
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.pipeline.processes.devices import limit_threads, working_device
from harness.rundir.files import stderr_to, write_cell
from harness.rundir.stage_folder import cell_name


def evaluate_checkpoints(suite: Suite, checkpoints: Sequence[Path], out: Path) -> dict[str, pd.DataFrame]:
    """Evaluate each checkpoint on all tasks of a suite; return each profile's scores with one row per checkpoint.

    Results go to `<out>/<suite>/checkpoints/<n>_<name>/<task>/`, the matrix to `<out>/<suite>/checkpoints/matrix.csv`; those
    of further profiles go to `<task>@<profile>/` and `matrix@<profile>.csv`. Raises `ModelError` for a checkpoint that is not
    a folder, and `TaskError` for prompts that do not fit its context.
    """
    limit_threads(suite.threads)
    allow_own_code(suite.trust_remote_code)
    library = TaskLibrary(suite.include, suite.data)
    evaluated = load_evaluation_plan(library, suite)
    tasks = evaluated.cells
    _check_checkpoints(suite, checkpoints, list(tasks.values()))
    folder, device = out / suite.name / "checkpoints", working_device(suite.device)
    rows: dict[str, dict[str, float]] = {}
    with closing(EnginePool(suite, device, folder)) as engines:
        engines.check()
        for index, checkpoint in enumerate(checkpoints):
            weights, student = weights_digest(checkpoint), suite.student
            with stderr_to(folder / "log.txt"):
                served = ServedCheckpoint(
                    checkpoint, weights, student.chat, student.dtype, device, engines.take(checkpoint)
                )
                cells = evaluate_checkpoint(served, list(tasks.values()), library, suite.evaluation, SharedCells(out))
            cells |= {
                name: group_cell(group, {task: cells[cell] for task, cell in group.members().items()})
                for name, group in evaluated.groups.items()
            }
            shutil.rmtree(folder / f"{index}_{checkpoint.name}", ignore_errors=True)
            for name, cell in cells.items():
                summary = cell.summary.model_copy(update={"stage": index})
                write_cell(folder / f"{index}_{checkpoint.name}" / name, summary, cell.samples)
            rows[str(checkpoint)] = {name: cell.summary.score for name, cell in cells.items()}
    return _matrices(suite, evaluated, pd.DataFrame.from_dict(rows, orient="index"), folder)


def _check_checkpoints(suite: Suite, checkpoints: Sequence[Path], tasks: Sequence[Task]) -> None:
    for checkpoint in checkpoints:
        if not checkpoint.is_dir():
            raise ModelError(f"checkpoint {checkpoint} is not a folder; give folders with weights and tokenizer")
        renderer = load_renderer(checkpoint, suite.student)
        context, beyond = suite.context(context_of(checkpoint)), suite.engine.beyond_context
        check_test_prompts(tasks, renderer, context, beyond, suite.evaluation.limit)


def _matrices(suite: Suite, evaluated: EvaluationPlan, scores: pd.DataFrame, folder: Path) -> dict[str, pd.DataFrame]:
    """Write and return one matrix per profile; a matrix never mixes profiles."""
    found: dict[str, pd.DataFrame] = {}
    for number, name in enumerate(suite.evaluation.all_profiles):
        profile = name if number else ""
        cells = evaluated.shown(profile)
        found[name] = scores[list(cells)].rename(columns=cells)
        found[name].to_csv(folder / f"{cell_name('matrix', profile)}.csv", index_label="checkpoint")
    return found


def matrix_table(scores: pd.DataFrame, profile: str = "default") -> Table:
    """Return one profile's score matrix (checkpoints by tasks, 0..1) as percentages for the terminal."""
    table = Table(title="score, %" if profile == "default" else f"score under profile {profile}, %")
    table.add_column("checkpoint", overflow="fold")
    for task in scores.columns:
        table.add_column(str(task), justify="right", overflow="fold", min_width=5)
    for name, row in scores.iterrows():
        table.add_row(escape(str(name)), *(f"{100 * score:.1f}" for score in row))
    return table
