"""Run directories as tidy pandas frames: everything that tables and figures show is read here, and only here.

A run that is still going on is an ordinary input: its missing cells are rows with score nan, and a line that is being
written to a step log is left for the next reading.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import RunError
from harness.lmeval.overlap import Overlap
from reports.drift import drift_frame, noise_frame
from reports.mending import describe_cell, what_differs
from reports.runs import RunDir, find_runs, read_json, read_lines, read_parquet

IDENTITY = ["label", "suite", "adapter", "order", "start", "seed"]
OUTCOMES = ["correct", "wrong", "unparsed", "truncated"]
PHASES = ["generate", "teacher", "student", "step"]
STEP_FIELDS = [
    *("loss", "entropy", "routed_fkl", "advantage_mean"),
    *(f"advantage_q{quantile:02d}" for quantile in (1, 5, 25, 50, 75, 95, 99)),
    *("fkl_gradient_share", "pull_up", "pull_down"),
    *("top_k", "teacher_top_mass", "student_top_mass", "overlap"),
    *("reward_mean", "response_tokens_mean", "truncated_share", "tokens", "grad_norm", "lr"),
    *(f"seconds_{phase}" for phase in PHASES),
]


@dataclass(frozen=True)
class Frames:
    """Everything a report needs. Runs, and with them all rows, are in display order: controls, then by name.

    `label` is what a reader calls a group of seeds: the adapter, and what else differs between the runs (suite, order,
    start).

    - `scores`: one row per run, stage and task that the suite evaluates; `score` in [0, 1], nan where missing.
    - `metrics`: one row per run, stage, task and metric of the task.
    - `steps`: one row per optimiser step; `global_step` counts through the stages on an axis common to all runs of a
      suite and order.

    Cells are those of one evaluation profile, the suite's first where `profile` is empty, and of the tasks' own graders, or
    of `grader` where a task was regraded with it.
    """

    runs: tuple[RunDir, ...]
    profile: str = ""
    grader: str = ""

    @cached_property
    def labelled(self) -> list[tuple[RunDir, str]]:
        """Each run with the label of its group."""
        varying = [key for key in ("suite", "order", "start") if len({getattr(run, key) for run in self.runs}) > 1]
        return [(run, ", ".join([run.adapter, *(getattr(run, key) or "-" for key in varying)])) for run in self.runs]

    @cached_property
    def overlap(self) -> Overlap | None:
        """Every distinct comparison of training with test prompts; None when no run recorded any."""
        recorded = [Overlap.read(run.manifest["overlap"]) for run in self.runs if "overlap" in run.manifest]
        rows = dict.fromkeys(row for overlap in recorded for row in overlap.rows)
        return Overlap(tuple(rows), ()) if recorded else None

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores, outcomes and keys of every expected cell; raises RunError where cells are not comparable."""
        _check_comparable(self._cells)
        return pd.DataFrame([_score_row(cell) for cell in self._cells])

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Every metric of every evaluated cell, in long form."""
        keys = [*IDENTITY, "stage", "task", "metric", "value"]
        rows = [
            {**_base(cell), "metric": metric, "value": value}
            for cell in self._cells
            for metric, value in (cell.results or {}).get("metrics", {}).items()
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
    def drift(self) -> pd.DataFrame:
        """The distance from the start and the entropy after every stage, see `drift_frame`."""
        return drift_frame(self.labelled)

    @cached_property
    def noise(self) -> pd.DataFrame:
        """How much the start's sampled scores vary by the engine's seed alone, see `noise_frame`."""
        return noise_frame(self.labelled)

    @cached_property
    def warnings(self) -> pd.DataFrame:
        """One row per warning that a training step raised, in the order of the runs and their steps."""
        keys = [*IDENTITY, "stage", "task", "step"]
        raised = self.steps[[*keys, "warnings"]].explode("warnings").dropna(subset="warnings")
        return raised.rename(columns={"warnings": "warning"}).reset_index(drop=True)

    @property
    def profiles(self) -> list[str]:
        """The evaluation profiles beside the first one that any run has; each has a matrix of its own."""
        return list(dict.fromkeys(name for run in self.runs for name in run.further_profiles))

    def under(self, profile: str) -> Frames:
        """Return the cells of a further profile, of the runs that have it."""
        return replace(self, runs=tuple(run for run in self.runs if profile in run.further_profiles), profile=profile)

    @property
    def labels(self) -> list[str]:
        """The groups of runs, in display order."""
        return list(dict.fromkeys(label for _, label in self.labelled))

    def samples(self, task: str, columns: Sequence[str] | None = None, items: Set[str] | None = None) -> pd.DataFrame:
        """Return the stored answers on one task, with the run's identity and the stage; read on demand.

        `columns` (with `item_id`) and `items` limit what is kept.
        """
        found = [(cell, read_parquet(cell.answers, columns)) for cell in self._answered if cell.task == task]
        if not found:
            raise RunError(f"No stored answers on {task!r}; expected samples.parquet in a stage's eval folder.")
        if items is not None:
            found = [(cell, rows[rows["item_id"].isin(items)]) for cell, rows in found]
        return _placed(found)

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row per run, stage, task and item: its `outcome`, without texts; where an item has several, the first not right.

        `last` is the run's last stage and `own_stage` the one that trains the task, 0 where none does.
        """
        found = [(cell, _outcomes(cell)) for cell in self._answered]
        keys = [*IDENTITY, "stage", "task", "item_id", "outcome", "last", "own_stage"]
        return _placed(found)[keys] if found else pd.DataFrame(columns=pd.Index(keys))

    @property
    def _answered(self) -> Iterator[Cell]:
        return (cell for cell in self._cells if cell.answers.is_file())

    @cached_property
    def _cells(self) -> list[Cell]:
        return [cell for run, label in self.labelled for cell in _cells(run, label, self.profile, self.grader)]


def load(paths: Iterable[Path], grader: str = "") -> Frames:
    """Read the runs below `paths`; see `find_runs`. Raises RunError when nothing there was graded by `grader`."""
    frames = Frames(tuple(find_runs(paths)), grader=grader)
    if grader and grader not in set(frames.scores["metric"]):
        command = shlex.join(["harness", "regrade", *(str(run.path) for run in frames.runs), "--grader", grader])
        raise RunError(f"No cell is graded by {grader!r}; grade the answers with: {command}")
    return frames


@dataclass(frozen=True)
class Cell:
    """One task after one stage of one run; `results` is None when it has not been evaluated."""

    run: RunDir
    label: str
    stage: int
    task: str
    path: Path
    results: dict[str, Any] | None

    @property
    def answers(self) -> Path:
        """The file of its graded answers."""
        return self.path / "samples.parquet"


def _cells(run: RunDir, label: str, profile: str, grader: str) -> Iterator[Cell]:
    for stage in range(len(run.stages) + 1):
        for task in run.tasks_under(profile):
            path = run.cell_path(stage, task, profile, grader)
            file = path / "results.json"
            yield Cell(run, label, stage, task, path, read_json(file) if file.is_file() else None)


def _base(cell: Cell) -> dict[str, Any]:
    """Columns that say which run, stage and task a row belongs to."""
    run = cell.run
    identity = dict(zip(IDENTITY, (cell.label, run.suite, run.adapter, run.order, run.start, run.seed), strict=True))
    return {**identity, "stage": cell.stage, "task": cell.task}


def _score_row(cell: Cell) -> dict[str, Any]:
    run, results = cell.run, cell.results or {}
    outcomes = results.get("outcomes", {})
    return {
        **_base(cell),
        "stage_task": run.stages[cell.stage - 1] if cell.stage else "",
        "role": "probe" if cell.task in run.probes else "trained",
        "own": cell.stage > 0 and cell.task in run.trains[cell.stage - 1],
        "metric": results.get("metric", ""),
        "score": float(results.get("score", "nan")),
        "n": int(results.get("n", 0)),
        "answers": int(results.get("n", 0)) * int(results.get("samples", 1)),
        **{outcome: int(outcomes.get(outcome, 0)) for outcome in OUTCOMES},
        "response_tokens_mean": float(results.get("response_tokens_mean") or "nan"),
        "seconds": float(results.get("seconds") or 0),
        "weights": results.get("weights", ""),
        "comparability": results.get("keys", {}).get("comparability", ""),
    }


def _outcomes(cell: Cell) -> pd.DataFrame:
    answers = read_parquet(cell.answers, ["item_id", "outcome"])
    if not answers["item_id"].is_unique:
        right = answers["outcome"] == "correct"
        answers = pd.concat([answers[~right], answers[right]]).drop_duplicates("item_id")
    own = next((stage for stage, tasks in enumerate(cell.run.trains, start=1) if cell.task in tasks), 0)
    return answers.assign(last=len(cell.run.stages), own_stage=own)


def _placed(found: Sequence[tuple[Cell, pd.DataFrame]]) -> pd.DataFrame:
    """Put the cells' rows one after another, each with its run, stage and task."""
    places = pd.DataFrame([_base(cell) for cell, _ in found])
    repeated = places.take(np.repeat(np.arange(len(found)), [len(rows) for _, rows in found])).reset_index(drop=True)
    rows = pd.concat([rows for _, rows in found], ignore_index=True)
    # A group's rows say of which of its tasks they are; here all of a cell's are of the cell's.
    return pd.concat([repeated, rows.drop(columns=repeated.columns, errors="ignore")], axis=1)


def _check_comparable(cells: Sequence[Cell]) -> None:
    """Refuse a task whose cells were generated or graded under different conditions."""
    kinds: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        if cell.results is not None:
            key = str(cell.results.get("keys", {}).get("comparability", ""))
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
        file = run.stage_path(stage) / "train" / "steps.jsonl"
        base = _base(Cell(run, label, stage, task, file.parent, None))
        for line in read_lines(file):
            seconds = line.pop("seconds", None) or {}
            yield {**line, **{f"seconds_{phase}": value for phase, value in seconds.items()}, **base}


def _on_common_axis(steps: pd.DataFrame) -> pd.DataFrame:
    """Add `global_step`: stages follow one another, each as long as the longest run of its suite and order."""
    lengths = steps.groupby(["suite", "order", "stage"])["step"].max() + 1
    offsets = lengths.groupby(["suite", "order"]).transform(lambda length: length.cumsum() - length)
    keys = pd.MultiIndex.from_frame(steps[["suite", "order", "stage"]])
    return steps.assign(global_step=steps["step"] + offsets.reindex(keys).to_numpy())
