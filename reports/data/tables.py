"""The report's numbers as tidy tables and CSV files: retention, figures, frontier, advantage, outcomes and cost.

Scores are shares in [0, 1]. A seed is one observation: intervals are t intervals over seeds, and a single seed has none. They
do not cover the choice of test items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from harness.config.suite import JOINT
from harness.rundir.reader import IDENTITY
from harness.rundir.records.cell_records import OUTCOMES, PERPLEXITIES
from harness.stats.continual import FIGURES, PROBE_CHANGE, compute_figures
from harness.stats.figure_terms import learned_tasks
from harness.stats.intervals import Interval, t_interval
from harness.stats.score_matrix import Figure, ScoreMatrix
from reports.data.csv_text import to_csv_text
from reports.data.frames import ADVANTAGE, PHASES, Frames

FRONTIER = {"learned": "learning_accuracy", "final": "average_accuracy", "forgot": "forgetting_chaudhry"}


def write_tables(frames: Frames, folder: Path, more: Mapping[str, pd.DataFrame] = MappingProxyType({})) -> list[Path]:
    """Write every table and those of `more` as CSV below `folder`, in full precision; return the files.

    A further profile's tables are named `<table>@<profile>`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        **_tables_of_profile(frames),
        "retention_wide": wide_retention_table(frames.scores),
        "figures_by_seed": figures_by_seed(frames.scores),
        "outcomes": outcomes_table(frames.scores),
        "cost": cost_table(frames),
        **more,
    }
    for profile in frames.profiles:
        tables |= {f"{name}@{profile}": table for name, table in _tables_of_profile(frames.under(profile)).items()}
    for name, table in tables.items():
        text = to_csv_text(with_plain_columns(table).replace({"unit": {"%": "share", "points": "share"}}))
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return [folder / f"{name}.csv" for name in tables]


def _tables_of_profile(frames: Frames) -> dict[str, pd.DataFrame]:
    return {
        "scores": frames.scores,
        "metrics": frames.metrics,
        "retention": retention_table(frames.scores),
        "figures": figure_table(frames.scores),
    }


def with_plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with each column of intervals split in four: the mean under its own name, `_low`, `_high`, `_seeds`.

    The column `interval` becomes `mean`, `low`, `high` and `seeds`.
    """
    columns: dict[str, pd.Series] = {}
    for name in map(str, table.columns):
        held = table[name].to_list()
        if not held or not all(isinstance(value, Interval) for value in held):
            columns[name] = table[name]
            continue
        own, prefix = ("mean", "") if name == "interval" else (name, f"{name}_")
        parts = {own: "mean", **{f"{prefix}{part}": part for part in ("low", "high", "seeds")}}
        columns = {name: column for name, column in columns.items() if name not in parts}
        columns |= {to: pd.Series([getattr(value, part) for value in held], table.index) for to, part in parts.items()}
    return pd.DataFrame(columns)


def retention_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per label, stage and task: its `interval` over seeds, smallest and largest seed, and items.

    `mean` and `seeds` repeat those of the interval. `items` is the number of test items of the task in one evaluation.
    """
    keys = ["label", "adapter", "stage", "stage_task", "task", "role", "own"]
    rows = []
    for values, cells in scores.groupby(keys, sort=False):
        score, interval = cells["score"], t_interval(cells["score"]).of_unit("%")
        spread = {"smallest": score.min(), "largest": score.max(), "items": int(cells["n"].max())}
        found = {"interval": interval, "mean": interval.mean, "seeds": interval.seeds}
        rows.append({**dict(zip(keys, values, strict=True)), **found, **spread})
    return pd.DataFrame(rows)


def wide_retention_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the retention matrix: one row per label and stage, one column of mean scores per task."""
    table = retention_table(scores)
    tasks = list(table["task"].unique())
    wide = table.pivot(index=["label", "stage", "stage_task"], columns="task", values="mean")
    order = table[["label", "stage", "stage_task"]].drop_duplicates()
    return wide.reindex(pd.MultiIndex.from_frame(order))[tasks].reset_index().rename_axis(columns=None)


def score_matrices(scores: pd.DataFrame) -> Iterator[tuple[dict[str, Any], ScoreMatrix]]:
    """Yield each run's identity and its score matrix, trained tasks in stage order.

    A run's joint scores come from the run of the same suite, adapter, start and seed in the order `joint`, where it exists.
    """
    joint = _joint_scores(scores)
    for values, cells in scores.groupby(IDENTITY, sort=False):
        identity: dict[str, Any] = dict(zip(IDENTITY, values, strict=True))
        own = cells[cells["own"]].set_index("task")["stage"]
        probes = tuple(cells.loc[cells["role"] != "trained", "task"].unique())
        table = cells.pivot(index="stage", columns="task", values="score")[[*own.index, *probes]]
        together = joint.get(_seed_key(identity)) if identity["order"] != JOINT else None
        yield (
            identity,
            ScoreMatrix(
                table.to_numpy(dtype=float),
                trained=tuple(own.index),
                probes=probes,
                stage_of=tuple(own),
                joint=None if together is None else together.reindex(own.index).to_numpy(dtype=float),
                fixed=tuple(cells.loc[cells["fixed"], "task"].unique()),
                before=tuple(cells.loc[cells["role"] == "trained before", "task"].unique()),
            ),
        )


def _joint_scores(scores: pd.DataFrame) -> dict[tuple[object, ...], pd.Series]:
    """Return each joint run's scores after its one stage, by task."""
    own = scores[(scores["order"] == JOINT) & scores["own"]]
    return {
        _seed_key(cells.iloc[0].to_dict()): cells.set_index("task")["score"]
        for _, cells in own.groupby(IDENTITY, sort=False)
    }


def _seed_key(identity: Mapping[Any, Any]) -> tuple[object, ...]:
    """Return the key that a run shares with its joint run."""
    return tuple(identity[key] for key in ("suite", "adapter", "start", "seed"))


def figures_by_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and figure.

    A probe's own change is a figure called `probe_change:<task>`, and that of a task that was trained before the start one
    called `changed:<task>`.
    """
    rows = []
    for identity, matrix in score_matrices(scores):
        names = {task: "changed" if task in matrix.before else "probe_change" for task in matrix.probes}
        changes = {f"{name}:{task}": PROBE_CHANGE.value(matrix, task) for task, name in names.items()}
        values = {**compute_figures(matrix), **changes}
        rows += [{**identity, "figure": name, "value": value} for name, value in values.items()]
    return pd.DataFrame(rows)


def figure_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per figure and label: its `interval` over seeds, formula and source.

    Rows are in the registry's order. The formula of a figure over tasks that the method trains itself names the others, those
    of stages with an adapter of their own. Intransigence and probe change are left out where no run has them.
    """
    values = figures_by_seed(scores)
    optional = values["figure"].str.startswith(("intransigence", "probe_"))
    known = values.groupby("figure")["value"].transform(lambda column: column.notna().any())
    rows = []
    for (name, label), cells in values[~optional | known].groupby(["figure", "label"], sort=False):
        figure = _describe(str(name))
        own = without_fixed(scores[scores["label"] == label]) if figure.over is learned_tasks else ""
        meaning = {"title": figure.label, "unit": figure.unit, "higher_is_better": figure.higher_is_better}
        reference = {"formula": f"{figure.formula}{own}", "source": figure.source}
        rows.append(
            {
                "figure": name,
                "label": label,
                **meaning,
                "interval": t_interval(cells["value"]).of_unit(figure.unit),
                **reference,
            }
        )
    table, names = pd.DataFrame(rows), list(values["figure"].unique())
    return table.sort_values("figure", key=lambda column: column.map(names.index), kind="stable", ignore_index=True)


def without_fixed(scores: pd.DataFrame) -> str:
    """Name the trained tasks of stages with an adapter of their own, in brackets; empty where there are none."""
    fixed = ", ".join(scores.loc[scores["fixed"], "task"].unique())
    return f" (without {fixed})" if fixed else ""


def _describe(name: str) -> Figure:
    figure, _, task = name.partition(":")
    if not task:
        return FIGURES[figure]
    label = f"Change of probe {task}" if figure == PROBE_CHANGE.name else f"Change of {task}, trained before the start"
    return replace(PROBE_CHANGE, label=label, formula="R[T][p] − R[0][p]")


def frontier_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per label: learning accuracy, final accuracy and Chaudhry's forgetting with t intervals over seeds.

    The seeds are those whose last stage is evaluated; before any is, learning is that of all seeds.
    """
    values, rows = figures_by_seed(scores), []
    final = values[values["figure"] == FRONTIER["final"]].dropna(subset="value")
    for (label, adapter), found in values.groupby(["label", "adapter"], sort=False):
        ended = found["seed"].isin(final.loc[final["label"] == label, "seed"])
        cells = found[ended] if ended.any() else found
        row: dict[str, Any] = {"label": label, "adapter": adapter}
        for name, figure in FRONTIER.items():
            row[name] = t_interval(cells.loc[cells["figure"] == figure, "value"]).of_unit(FIGURES[figure].unit)
        rows.append(row)
    return pd.DataFrame(rows)


def advantage_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return per label the mean over steps, then over seeds, of the advantage's mean and quantiles and of the routed share.

    `tail` is |1 % quantile| / |99 % quantile|, nan where that is not finite.
    """
    known = steps.dropna(subset="advantage_mean")
    by_seed = known.groupby(IDENTITY, sort=False)[[*ADVANTAGE, "routed_fkl"]].mean()
    table = by_seed.groupby("label", sort=False).mean().reset_index()
    tail = table["advantage_q01"].abs() / table["advantage_q99"].abs()
    return table.assign(
        tail=tail.where(np.isfinite(tail)), seeds=by_seed.groupby("label", sort=False).size().to_numpy()
    )


def outcomes_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each outcome per label and task at the start and at the end, answers of all `seeds` pooled.

    A task's seeds are those evaluated at both ends; where none is, the row is of all starts, and none is of the end. Cells
    that are not evaluated and perplexities, whose answers have no outcome, are left out.
    """
    placed = scores.assign(last=scores.groupby(IDENTITY)["stage"].transform("max"), seeds=1)
    ends = _both_ends(placed[~placed["metric"].isin(PERPLEXITIES)].dropna(subset="score"), ["task"])
    counted = ["n", "answers", "seeds", *OUTCOMES]
    table = ends.groupby(["label", "task", "role", "when"], sort=False)[counted].sum().reset_index()
    shares = list(OUTCOMES)
    table[shares] = table[shares].div(table["answers"], axis=0)
    return table.drop(columns="answers").rename(columns={"n": "items"})


def several_answers_table(frames: Frames) -> pd.DataFrame:
    """Return mean@n and pass@k per label and task at the start and at the end, mean over the `seeds` that have both.

    Where none has both, the row is of all starts. The table is empty where items have one answer each.
    """
    chosen = frames.metrics[frames.metrics["metric"].str.contains("@", regex=False)]
    placed = chosen.assign(last=chosen["label"].map({label: len(run.stages) for run, label in frames.labelled}))
    ends = _both_ends(placed, ["task", "metric"])
    found = ends.groupby(["label", "task", "metric", "when"], sort=False)["value"]
    return found.agg(value="mean", seeds="size").reset_index()


def _both_ends(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the rows of the start and of the stage `last`, named in `when`, of the runs that have both; else the starts.

    A mean over other runs at the end than at the start would show a change that no run went through.
    """
    ends = rows[rows["stage"].isin([0]) | (rows["stage"] == rows["last"])]
    ends = ends.assign(when=np.where(ends["stage"] == 0, "start", "end"))
    both = ends.groupby([*IDENTITY, *keys])["when"].transform("nunique") == 2
    some = both.groupby([ends[key] for key in ("label", *keys)]).transform("any")
    return ends[both | (~some & (ends["when"] == "start"))]


def cost_table(frames: Frames) -> pd.DataFrame:
    """Return per label the average cost of one run: seconds by phase and in total, steps, tokens, and peak memory.

    `seconds_step` is the whole training step, which includes generation, teacher and student. `share_outside` is the share of
    the total outside generation, teacher, student, evaluation and the preparation of models; nan for a run that did not record
    its seconds. A stage with an adapter of its own is left out of steps, tokens and training phases: one run trains it for
    all, and the others hold its log. `memory_train` and `memory_evaluate` are the maximum over runs, in bytes; nan where no
    run recorded any.
    """
    phases = [f"seconds_{phase}" for phase in PHASES]
    runs = frames.scores.groupby(IDENTITY, sort=False)["seconds"].sum().rename("seconds_evaluate").to_frame()
    own = frames.own_steps.groupby(IDENTITY)
    trained = own[[*phases, "tokens"]].sum()
    trained["steps"] = own.size()
    runs = runs.join(trained).fillna(0.0)
    spent = pd.DataFrame([run.seconds for run in frames.runs], index=runs.index).astype(float)
    runs["seconds_evaluate"] = spent["evaluate"].fillna(runs["seconds_evaluate"])
    runs["seconds_models"], runs["seconds_total"] = spent["models"], spent["total"]
    inside = ["generate", "teacher", "student", "evaluate", "models"]
    runs["share_outside"] = 1 - runs[[f"seconds_{phase}" for phase in inside]].sum(axis=1) / runs["seconds_total"]
    columns = ["steps", "tokens", *phases, "seconds_evaluate", "seconds_models", "seconds_total", "share_outside"]
    by_label = runs.groupby("label", sort=False)
    table = by_label[columns].mean()
    table.insert(0, "runs", by_label.size())
    return table.join(_peak_memory(frames)).reset_index()


def _peak_memory(frames: Frames) -> pd.DataFrame:
    peaks = pd.DataFrame([run.peak_memory for run in frames.runs]).add_prefix("memory_").astype(float)
    return peaks.groupby([label for _, label in frames.labelled], sort=False).max()
