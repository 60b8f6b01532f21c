"""Grade stored answers again, with a task's present filter and grader; nothing is generated.

A grader is one of the metrics that a task's `process_results` returns; the chosen one becomes the score. `regrade_cell` grades
one cell. `regrade_runs` grades all cells of some runs and writes to `stage_<k>/regraded/<cell>/<grader>-<digest>/`, for the
teacher's own answers to `teacher/regraded/...`; what the evaluation wrote stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from harness.config.base import digest
from harness.errors import RunError, TaskError
from harness.evaluation.cell_cache import CellResult
from harness.evaluation.keys import grading_key
from harness.evaluation.scoring import graded_row, item_scores, numbered_ids, summarise_cell
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.rundir.files import read_cell, read_results, write_cell, write_summary
from harness.rundir.records.cell_records import EarlierGrade, Keys, Regrading
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import RunStore


@dataclass(frozen=True)
class RegradedCell:
    """One cell before and after: scores in 0..1, and how many items' scores changed."""

    run: Path
    stage: str
    cell: str
    grader: str
    before: float
    after: float
    items: int
    changed: int


# Grades by grading key (which covers grader and references), the item's index, and the answer.
Verdicts = dict[tuple[str, int, str], dict[str, Any]]


def regrade_runs(
    folders: Sequence[Path],
    grader: str = "",
    include: Sequence[Path] = (),
    trust: bool = False,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> list[RegradedCell]:
    """Grade every stored answer of some runs again, by `grader` or by each task's own, and return what changed.

    Task files name Python functions, which grading executes. So tasks come from `include` and the shipped folders and, with
    `trust`, from the folders that the runs name. Tasks that do not offer the grader or are scored by likelihoods are left out.
    An answer that several stages or runs gave to an item is graded once. `progress` gets the number of cells that are done,
    and of all. Raises `TaskError` if no task offers the grader, `RunError` if no answers are stored or a run names a folder
    that is not allowed.
    """
    stored = [cell for folder in folders for cell in _stored_cells(folder, include, trust) if cell.task.generates]
    if not stored:
        raise RunError(f"{', '.join(map(str, folders))}: no generated answers are stored there; evaluate first")
    chosen = [cell for cell in stored if not grader or grader in cell.task.graders]
    if not chosen:
        offers = {cell.task.name: ", ".join(cell.task.graders) for cell in stored}
        known = "; ".join(f"{name} offers {graders}" for name, graders in offers.items())
        raise TaskError(f"--grader {grader}: no task with stored answers offers it; {known}")
    verdicts: Verdicts = {}
    rows: list[RegradedCell] = []
    for cell in chosen:
        progress(len(rows), len(chosen))
        rows.append(_regrade(cell, grader, verdicts))
    progress(len(rows), len(chosen))
    return rows


def regrade_table(rows: Sequence[RegradedCell]) -> Table | str:
    """Return a table for the terminal with the cells that regrading changed, scores in %; a sentence where it changed none."""
    changed = [row for row in rows if row.changed or row.before != row.after]
    same = f"{len(rows) - len(changed)} of {len(rows)} cells keep every grade"
    if not changed:
        return same
    table = Table(title="regraded, scores in %", caption=same, title_justify="left", caption_justify="left")
    several = len({row.run for row in rows}) > 1
    for name in (*(("run",) if several else ()), "task", "stage", "grader"):
        table.add_column(name, overflow="fold")
    for name in ("old", "new", "items changed"):
        table.add_column(name, justify="right")
    for row in changed:
        scores = f"{100 * row.before:.1f}", f"{100 * row.after:.1f}", f"{row.changed} of {row.items}"
        table.add_row(*((escape(str(row.run)),) if several else ()), row.cell, row.stage, row.grader, *scores)
    return table


def regrade_cell(
    task: Task, docs: Sequence[dict[str, Any]], stored: CellResult, keys: Keys, verdicts: Verdicts | None = None
) -> CellResult:
    """Return a cell with the answers of `stored` and the grades that `task` gives them now.

    `docs` are the task's present test documents, in order; `keys` those of the new cell. The summary's `regraded` holds the
    earlier score. `verdicts` holds known grades, and new ones are added. Raises `TaskError` where the answers belong to other
    questions.
    """
    before = stored.summary
    _refuse_other_questions(task, docs, stored)
    samples, grades = _graded_samples(task, docs, stored.samples, keys, {} if verdicts is None else verdicts)
    seed = -1 if before.seed is None else before.seed
    summary = summarise_cell(task, samples, grades, keys, before.weights, seed, before.seconds)
    origin = EarlierGrade(metric=before.metric, score=before.score, grading=before.keys.grading)
    regraded = Regrading(when=datetime.now(UTC).isoformat(), grader=task.metric, before=origin)
    found = {"questions": questions_digest(task, docs), "regraded": regraded}
    return CellResult(summary.model_copy(update=found), samples)


def questions_digest(task: Task, docs: Sequence[dict[str, Any]]) -> str:
    """Return the digest of the documents' questions, in order; it shows later whether stored answers belong to them."""
    return digest(list(map(task.prompt_text, docs)))


@dataclass(frozen=True)
class _StoredCell:
    """One evaluated cell of a run, its task, and the task's present test documents."""

    run: Path
    folder: StageFolder
    name: str
    task: Task
    docs: list[dict[str, Any]]

    def read(self) -> CellResult:
        """Return the evaluation's cell; it is read only when needed, because the answers of many runs are large."""
        found = read_cell(self.folder.cell(self.name))
        if found is None:
            raise RunError(
                f"{self.folder.cell(self.name)} was removed while its run was regraded; wait until the run's evaluation has "
                "ended, and run the command again"
            )
        return CellResult(*found)


def _stored_cells(run: Path, include: Sequence[Path], trust: bool) -> Iterator[_StoredCell]:
    store = RunStore(run)
    if (manifest := store.manifest) is None:
        raise RunError(f"{run} has no manifest.json; expected the folder of a run")
    config = manifest.config
    named = [Path(folder) for folder in config.get("include", ())]
    _refuse_task_folders([] if trust else named, include, run)
    library = TaskLibrary([*include, *(named if trust else ())], config.get("data", {}))
    loaded: dict[str, tuple[Task, list[dict[str, Any]]]] = {}
    names = ["", *(stage.name for stage in manifest.stages)]
    folders = [*(store.stage(index, name) for index, name in enumerate(names)), store.teacher]
    in_groups = _tasks_in_groups(folders)
    for folder in folders:
        for path in sorted((folder.path / "eval").glob("[!.]*")):
            if (summary := read_results(path)) is None:
                continue
            name = summary.task
            if name in in_groups or summary.group is not None:
                continue
            if name not in loaded:
                task = library.load(name)
                loaded[name] = task, task.test_docs(config["evaluation"]["limit"])
            yield _StoredCell(run, folder, path.name, *loaded[name])


def _refuse_task_folders(named: Sequence[Path], allowed: Sequence[Path], run: Path) -> None:
    """Raise `RunError` for a folder of task files that a run names and the user did not."""
    known = {folder.resolve() for folder in allowed}
    if strange := [str(folder) for folder in named if folder.resolve() not in known]:
        raise RunError(
            f"{run} names the task folders {', '.join(strange)}, and grading executes the Python functions of task files; "
            "name the folders that you trust with --include-path, or trust all that the run names with --trust"
        )


def _tasks_in_groups(folders: Sequence[StageFolder]) -> set[str]:
    """Return the tasks of groups; they are not regraded, because the group's score was computed from their grades."""
    summaries = (read_results(path) for folder in folders for path in folder.path.glob("eval/[!.]*"))
    return {task for summary in summaries if summary and summary.group for task in summary.group.tasks}


def _regrade(stored: _StoredCell, grader: str, verdicts: Verdicts) -> RegradedCell:
    before = stored.read()
    profile = stored.name.partition("@")[2]
    task = stored.task.under(profile, before.summary.pass_at, grader)
    keys = before.summary.keys.regraded(grading_key(task, stored.docs))
    after = _graded(stored, before, task, keys, verdicts)
    scores = item_scores(before.samples).to_numpy(), item_scores(after.samples).to_numpy()
    return RegradedCell(
        stored.run, stored.folder.path.name, stored.name, task.metric, before.summary.score, after.summary.score,
        len(scores[0]), int((scores[0] != scores[1]).sum()),
    )  # fmt: skip


def _graded(stored: _StoredCell, before: CellResult, task: Task, keys: Keys, verdicts: Verdicts) -> CellResult:
    """Return the cell with these keys: the evaluation's own, one that an earlier command wrote, or a new one, written now.

    Reports show a grader's newest grades. So the grades of a grader that was edited and changed back are written again.
    """
    shown = stored.folder.newest_grading(stored.name, task.metric)
    if shown is None and keys.grading == before.summary.keys.grading:
        return before
    folder = stored.folder.regraded(stored.name) / f"{task.metric}-{digest([keys.generation, keys.grading])}"
    if folder == shown and (found := read_cell(folder)) is not None:
        return CellResult(*found)
    made = regrade_cell(task, stored.docs, before, keys, verdicts)
    place = {name: getattr(before.summary, name) for name in {"stage", "profile"} & before.summary.model_fields_set}
    summary = made.summary.model_copy(update=place)
    write_cell(folder, summary, made.samples)
    write_summary(folder, summary)
    return CellResult(summary, made.samples)


def _graded_samples(
    task: Task, docs: Sequence[dict[str, Any]], samples: pd.DataFrame, keys: Keys, verdicts: Verdicts
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return the rows with new grades, and for each item the grades of its first answer as the grader returned them."""
    each, ids = len(samples) // len(docs), numbered_ids(docs)
    rows, first = list[dict[str, Any]](), list[dict[str, Any]]()
    for position, answer in enumerate(samples.to_dict("records")):
        index, number = divmod(position, each)
        doc = docs[index]
        facts = {
            "item_id": ids[index],
            "cluster": task.cluster(doc),
            "sample": number,
            "prompt": answer["prompt"],
            "target": task.reference(doc),
            "response": answer["response"],
            "finish": answer["finish"],
            "tokens": answer["tokens"],
        }
        place = (keys.grading, index, str(answer["response"]))
        if (grades := verdicts.get(place)) is None:
            grades = verdicts[place] = task.grade(doc, str(answer["response"]))
        rows.append(graded_row(task, facts, grades))
        first += [grades] if number == 0 else []
    return pd.DataFrame(rows), first


def _refuse_other_questions(task: Task, docs: Sequence[dict[str, Any]], stored: CellResult) -> None:
    """Raise `TaskError` if the answers belong to other questions; without a digest of them, prompts are compared."""
    prompts = stored.samples.drop_duplicates("item_id")["prompt"]
    if len(prompts) != len(docs):
        raise TaskError(
            f"task {task.name}: {len(prompts)} items have stored answers and its test split has {len(docs)} now; an answer "
            "can only be graded against its own item, so evaluate the checkpoint again"
        )
    asked = stored.summary.questions
    if asked is None:
        same = all(task.prompt_text(doc).strip() in prompt for doc, prompt in zip(docs, prompts, strict=True))
    else:
        same = asked == questions_digest(task, docs)
    if not same:
        raise TaskError(
            f"task {task.name}: the stored answers belong to other questions than the test split asks now; the records or "
            "the template changed, so evaluate the checkpoint again"
        )
