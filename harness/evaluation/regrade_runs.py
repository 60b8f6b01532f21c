"""The stored answers of finished evaluations, graded anew without generating.

A grader is a metric that a task's `process_results` gives beside its own: choosing one makes it the score. New grades go to
`stage_<k>/regraded/<cell>/<grader>-<digest>/`; what the evaluation wrote stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from harness.config.base import digest
from harness.errors import RunError, TaskError
from harness.evaluation.cell_cache import CellResult
from harness.evaluation.keys import grading_key
from harness.evaluation.regrading import regrade
from harness.evaluation.scoring import item_scores
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.rundir.files import read_cell, read_results, write_cell, write_record
from harness.rundir.schema import Keys
from harness.rundir.store import RunStore, StageFolder


@dataclass(frozen=True)
class Regraded:
    """One cell before and after: scores in 0..1, and how many items' scores changed."""

    run: Path
    stage: str
    cell: str
    grader: str
    before: float
    after: float
    items: int
    changed: int


def regrade_runs(folders: Sequence[Path], grader: str = "") -> list[Regraded]:
    """Grade every stored answer of some runs anew, by `grader` or by each task's own, and return what changed.

    Tasks that do not offer the grader are left out, as are those that are scored by likelihoods.
    Raises `TaskError` where no task offers it, `RunError` where nothing is evaluated.
    """
    stored = [cell for folder in folders for cell in _stored_cells(folder) if cell.task.generates]
    if not stored:
        raise RunError(f"{', '.join(map(str, folders))}: no generated answers are stored there; evaluate first")
    chosen = [cell for cell in stored if not grader or grader in cell.task.graders]
    if not chosen:
        offers = {cell.task.name: ", ".join(cell.task.graders) for cell in stored}
        known = "; ".join(f"{name} offers {graders}" for name, graders in offers.items())
        raise TaskError(f"--grader {grader}: no task with stored answers offers it; {known}")
    return [_regrade(cell, grader) for cell in chosen]


@dataclass(frozen=True)
class _Stored:
    """One evaluated cell of a run with its task and the task's test documents of today."""

    run: Path
    folder: StageFolder
    name: str
    task: Task
    docs: list[dict[str, Any]]

    def read(self) -> CellResult:
        """Return what the evaluation wrote; read when needed, because answers of many runs are large."""
        found = read_cell(self.folder.cell(self.name))
        if found is None:
            raise RunError(f"{self.folder.cell(self.name)} vanished while it was graded; is it being evaluated again?")
        return CellResult(*found)


def _stored_cells(run: Path) -> Iterator[_Stored]:
    store = RunStore(run)
    if (manifest := store.manifest) is None:
        raise RunError(f"{run} has no manifest.json; expected the folder of a run")
    config = manifest.config
    library = TaskLibrary(config.get("include", ()), config.get("data", {}))
    loaded: dict[str, tuple[Task, list[dict[str, Any]]]] = {}
    in_groups = _tasks_in_groups(run)
    names = ["", *(stage.name for stage in manifest.stages)]
    for folder in (store.stage(index, name) for index, name in enumerate(names)):
        for path in sorted((folder.path / "eval").glob("[!.]*")):
            if (summary := read_results(path)) is None:
                continue
            name = summary.task
            if name in in_groups or summary.group is not None:
                continue
            if name not in loaded:
                task = library.load(name)
                loaded[name] = task, task.test_docs(config["evaluation"]["limit"])
            yield _Stored(run, folder, path.name, *loaded[name])


def _tasks_in_groups(run: Path) -> set[str]:
    """Return the tasks whose grades a group's score was made of: they stay together as they are."""
    summaries = map(read_results, run.glob("stage_0/eval/[!.]*"))
    return {task for summary in summaries if summary and summary.group for task in summary.group.tasks}


def _regrade(stored: _Stored, grader: str) -> Regraded:
    before = stored.read()
    profile = stored.name.partition("@")[2]
    task = stored.task.under(profile, before.summary.pass_at, grader)
    keys = before.summary.keys.regraded(grading_key(task, stored.docs))
    after = _graded(stored, before, task, keys)
    scores = item_scores(before.samples).to_numpy(), item_scores(after.samples).to_numpy()
    return Regraded(
        stored.run, stored.folder.path.name, stored.name, task.metric, before.summary.score, after.summary.score,
        len(scores[0]), int((scores[0] != scores[1]).sum()),
    )  # fmt: skip


def _graded(stored: _Stored, before: CellResult, task: Task, keys: Keys) -> CellResult:
    """Return the cell with these grades: the evaluation's own, those that an earlier command wrote, or made and written now.

    Reports show a grader's newest grades, so a grader that is as it was before another one is written as the newest again.
    """
    shown = stored.folder.newest_grading(stored.name, task.metric)
    if shown is None and keys.grading == before.summary.keys.grading:
        return before
    folder = stored.folder.regraded(stored.name) / f"{task.metric}-{digest([keys.generation, keys.grading])}"
    if folder == shown and (found := read_cell(folder)) is not None:
        return CellResult(*found)
    made = regrade(task, stored.docs, before, keys)
    place = {name: getattr(before.summary, name) for name in {"stage", "profile"} & before.summary.model_fields_set}
    summary = made.summary.model_copy(update=place)
    write_cell(folder, summary, made.samples)
    write_record(folder / "results.json", summary)
    return CellResult(summary, made.samples)


def regrade_table(rows: Sequence[Regraded]) -> Table:
    """Return what regrading changed for the terminal, scores in %, one row per cell."""
    table = Table(title="regraded, scores in %")
    several = len({row.run for row in rows}) > 1
    for name in (*(("run",) if several else ()), "task", "stage", "grader"):
        table.add_column(name, overflow="fold")
    for name in ("old", "new", "items changed"):
        table.add_column(name, justify="right")
    for row in rows:
        scores = f"{100 * row.before:.1f}", f"{100 * row.after:.1f}", f"{row.changed} of {row.items}"
        table.add_row(*((escape(str(row.run)),) if several else ()), row.cell, row.stage, row.grader, *scores)
    return table
