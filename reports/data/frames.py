"""Read run directories into tidy pandas frames: everything that tables and figures show is read here, and only here.

A run that is still going on is an ordinary input: its missing cells are rows with score nan, and a half-written line of a step
log is left for the next reading.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import RunError
from harness.rundir.integrity import Fault, refuse_changed
from harness.rundir.reader import IDENTITY, RunDir, find_runs, identity, read_parquet
from harness.rundir.records.overlap_record import Overlap, Unlisted
from reports.data.cells import CellRef, cells_of, independent_items, outcome_rows, place_of, place_rows, score_row
from reports.data.drift_frames import drift_frame, noise_frame
from reports.data.repair_hints import describe_cell, what_differs

PHASES = ["generate", "teacher", "student", "step"]
ADVANTAGE = ["advantage_mean", *(f"advantage_q{quantile:02d}" for quantile in (1, 5, 25, 50, 75, 95, 99))]
STEP_FIELDS = [
    *("loss", "entropy", "routed_fkl", *ADVANTAGE),
    *("fkl_gradient_share", "pull_up", "pull_down"),
    *("top_k", "teacher_top_mass", "student_top_mass", "overlap"),
    *("teacher_entropy", "teacher_agreement", "teacher_neginf_share"),
    *("reward_mean", "response_tokens_mean", "truncated_share", "tokens", "grad_norm", "lr"),
    *(f"seconds_{phase}" for phase in PHASES),
]


@dataclass(frozen=True)
class Frames:
    """Everything a report needs. Runs, and with them all rows, are in display order: controls first, then by name.

    `label` names a group of seeds for a reader: the adapter, and what else differs between the runs (suite, order, start).

    - `scores`: one row per run, stage and task that the suite evaluates; `score` in [0, 1], nan where missing.
    - `metrics`: one row per run, stage, task and metric of the task.
    - `steps`: one row per optimiser step; `global_step` counts on through the stages, on one axis for all runs of a suite
      and order.

    Cells are those of one evaluation profile, the suite's first where `profile` is empty, and of the tasks' own graders, or
    of `grader` where a task was regraded with it. `faults` are the files that finished runs lack.
    """

    runs: tuple[RunDir, ...]
    profile: str = ""
    grader: str = ""
    faults: tuple[Fault, ...] = ()

    @cached_property
    def labelled(self) -> list[tuple[RunDir, str]]:
        """Each run with the label of its group."""
        return list(zip(self.runs, labels_of(self.runs), strict=True))

    @cached_property
    def overlap(self) -> Overlap | None:
        """The distinct comparisons of training with test prompts of all runs, see `Overlap`; None when no run recorded any."""
        recorded = [run.manifest.overlap for run in self.runs if run.manifest.overlap is not None]
        rows = dict.fromkeys(row for overlap in recorded for row in overlap.rows)
        kinds = {frozenset(overlap.digests.items()): overlap.unlisted.model_dump() for overlap in recorded}
        unlisted = {name: sum(counts[name] for counts in kinds.values()) for name in Unlisted.model_fields}
        return Overlap(rows=tuple(rows), unlisted=Unlisted(**unlisted)) if recorded else None

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores, outcomes and keys of every expected cell; raises RunError where cells are not comparable."""
        _check_comparable(self._cells)
        return pd.DataFrame([score_row(cell) for cell in self._cells])

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Every metric of every evaluated cell, in long form."""
        keys = [*IDENTITY, "stage", "task", "metric", "value"]
        rows = [
            {**place_of(cell), "metric": metric, "value": value}
            for cell in self._cells
            if cell.results is not None
            for metric, value in cell.results.metrics.items()
        ]
        return pd.DataFrame(rows, columns=pd.Index(keys))

    @cached_property
    def steps(self) -> pd.DataFrame:
        """Training steps with STEP_FIELDS as float columns, nan where an adapter has no such quantity.

        `warnings` is the list of what the step raised, nan in logs of versions that did not look for any.
        """
        keys = [*IDENTITY, "stage", "task", "step", "warnings"]
        rows = [row for run, label in self.labelled for row in _step_rows(run, label)]
        frame = pd.DataFrame(rows).reindex(columns=pd.Index([*keys, *STEP_FIELDS]))
        frame[STEP_FIELDS] = frame[STEP_FIELDS].astype(float)
        frame = frame.drop_duplicates([*IDENTITY, "stage", "step"], keep="last")
        return _on_common_axis(frame)

    @cached_property
    def own_steps(self) -> pd.DataFrame:
        """The steps of stages that the methods train themselves; one with an adapter of its own trains all methods alike."""
        shared = {
            (*identity(run, label).values(), number)
            for run, label in self.labelled
            for number, stage in enumerate(run.manifest.stages, start=1)
            if stage.adapter
        }
        places = self.steps[[*IDENTITY, "stage"]].itertuples(index=False, name=None)
        own = pd.Series([place not in shared for place in places], self.steps.index, dtype=bool)
        return self.steps[own]

    @cached_property
    def drift(self) -> pd.DataFrame:
        """The distance from the start and the entropy after every stage, see `drift_frame`."""
        return drift_frame(self.labelled)

    @cached_property
    def noise(self) -> pd.DataFrame:
        """How much the start's sampled scores vary with the engine's seed alone, see `noise_frame`."""
        return noise_frame(self.labelled)

    @cached_property
    def warnings(self) -> pd.DataFrame:
        """One row per warning that a training step raised, in the order of the runs and their steps."""
        keys = [*IDENTITY, "stage", "task", "step"]
        raised = self.steps[[*keys, "warnings"]].explode("warnings").dropna(subset="warnings")
        return raised.rename(columns={"warnings": "warning"}).reset_index(drop=True)

    @property
    def profiles(self) -> list[str]:
        """The names of all runs' evaluation profiles after each suite's first; each profile has its own matrix."""
        return list(dict.fromkeys(name for run in self.runs for name in run.further_profiles))

    def under(self, profile: str) -> Frames:
        """Return the frames of one of `profiles`, with only the runs that have it."""
        return replace(self, runs=tuple(run for run in self.runs if profile in run.further_profiles), profile=profile)

    @property
    def labels(self) -> list[str]:
        """The groups of runs, in display order."""
        return list(dict.fromkeys(label for _, label in self.labelled))

    def samples(self, task: str, columns: Sequence[str] | None = None, items: Set[str] | None = None) -> pd.DataFrame:
        """Return the stored answers on one task, with the run's identity and the stage; read on demand.

        `columns` (which must hold `item_id`) and `items` limit what is read. Raises `RunError` without stored answers.
        """
        found = [(cell, read_parquet(cell.answers, columns)) for cell in self._answered if cell.task == task]
        if not found:
            raise RunError(f"No stored answers on {task!r}; expected samples.parquet in a stage's eval folder.")
        if items is not None:
            found = [(cell, rows[rows["item_id"].isin(items)]) for cell, rows in found]
        return place_rows(found)

    @property
    def answered_tasks(self) -> list[str]:
        """The tasks that have stored answers, in order."""
        return list(dict.fromkeys(cell.task for cell in self._answered))

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row per run, stage, task and item: its `outcome`, without texts; where an item has several, the first not right.

        `last` is the run's last stage and `own_stage` the one that trains the task, 0 where none does.
        """
        found = [(cell, outcome_rows(cell)) for cell in self._answered]
        keys = [*IDENTITY, "stage", "task", "item_id", "outcome", "last", "own_stage"]
        return place_rows(found)[keys] if found else pd.DataFrame(columns=pd.Index(keys))

    @cached_property
    def choices(self) -> dict[str, float]:
        """The mean number of choices per item of each multiple-choice task; other tasks have no entry."""
        first = {cell.task: cell for cell in reversed(list(self._answered))}
        found: dict[str, float] = {}
        for task, cell in first.items():
            rows = read_parquet(cell.answers, ["response", "loglikelihoods"])
            if "loglikelihoods" in rows and rows["loglikelihoods"].notna().all() and (rows["response"] != "").all():
                twice = cell.results is not None and cell.results.metric == "acc_mutual_info"  # each choice asked twice
                found[task] = float(rows["loglikelihoods"].map(len).mean()) / (2 if twice else 1)
        return found

    @cached_property
    def fewest_items(self) -> tuple[int, float]:
        """The test items of the task that has the fewest independent ones, and how many these are; zeros before any cell.

        Items of a task are the same in all its cells, so one cell of each size is read.
        """
        kinds = {
            (cell.run.suite, cell.task, cell.results.n, cell.results.clusters): cell
            for cell in self._cells
            if cell.results is not None
        }
        sizes = [(key[2], independent_items(cell)) for key, cell in kinds.items()]
        return min(sizes, key=itemgetter(1), default=(0, 0.0))

    @property
    def _answered(self) -> Iterator[CellRef]:
        return (cell for cell in self._cells if cell.answers.is_file())

    @cached_property
    def _cells(self) -> list[CellRef]:
        return [cell for run, label in self.labelled for cell in cells_of(run, label, self.profile, self.grader)]


def labels_of(runs: Sequence[RunDir]) -> list[str]:
    """Return each run's adapter, with its suite, order and start where these differ between the runs."""
    varying = [key for key in ("suite", "order", "start") if len({getattr(run, key) for run in runs}) > 1]
    return [", ".join([run.adapter, *(getattr(run, key) or "-" for key in varying)]) for run in runs]


def load_frames(paths: Iterable[Path], grader: str = "") -> Frames:
    """Read the runs below `paths`; see `find_runs`.

    Raises RunError when a file of a run was changed, and when nothing there was graded by `grader`.
    """
    runs = find_runs(paths)
    frames = Frames(tuple(runs), grader=grader, faults=tuple(refuse_changed(runs)))
    if grader and grader not in set(frames.scores["metric"]):
        command = shlex.join(["harness", "regrade", *(str(run.path) for run in frames.runs), "--grader", grader])
        raise RunError(f"No cell is graded by {grader!r}; grade the answers with: {command}")
    return frames


def _check_comparable(cells: Sequence[CellRef]) -> None:
    """Raise `RunError` for a task whose cells were generated or graded under different conditions."""
    kinds: dict[tuple[str, str], dict[str, list[CellRef]]] = {}
    for cell in cells:
        if cell.results is not None:
            key = cell.results.keys.comparability
            kinds.setdefault((cell.run.suite, cell.task), {}).setdefault(key, []).append(cell)
    for (_, task), by_key in kinds.items():
        if len(by_key) > 1:
            first, second = list(by_key.values())[:2]
            raise RunError(
                f"{task} was evaluated under different conditions by {describe_cell(first[0])} and "
                f"{describe_cell(second[0])}, so these cells cannot share a table: {what_differs(first[-1], second[-1])}"
            )


def _step_rows(run: RunDir, label: str) -> Iterator[dict[str, Any]]:
    for stage, task in enumerate(run.stages, start=1):
        base = place_of(CellRef(run, label, stage, task, run.stage(stage).path, None))
        for line in run.step_lines(stage):
            spent = {f"seconds_{phase}": value for phase, value in (line.seconds or {}).items()}
            yield {**line.figures, **spent, **base}


def _on_common_axis(steps: pd.DataFrame) -> pd.DataFrame:
    """Add `global_step`: stages follow one another, and each is as long as in the longest run of its suite and order."""
    lengths = steps.groupby(["suite", "order", "stage"])["step"].max() + 1
    offsets = lengths.groupby(["suite", "order"]).transform(lambda length: length.cumsum() - length)
    keys = pd.MultiIndex.from_frame(steps[["suite", "order", "stage"]])
    return steps.assign(global_step=steps["step"] + offsets.reindex(keys).to_numpy())
