"""The teacher's own scores: what its student could reach, and on which tasks it has nothing to teach."""

from __future__ import annotations

import pandas as pd

from harness.rundir.files import read_results
from harness.rundir.records.cell_records import WORSE_TEACHER
from harness.stats.intervals import Interval, t_interval
from reports.data.frames import Frames
from reports.formatting import format_percent


def teacher_cells(frames: Frames) -> pd.DataFrame:
    """Return one row per suite, teacher and task: `suite`, `weights`, `task`, `role`, `score` (0..1).

    A score by a metric that no student has is left out, such as that of a teacher whose answers were not regraded.
    """
    rows = []
    graded = frames.scores.groupby(["suite", "task"])["metric"].agg(set).to_dict()
    for run in frames.runs:
        for task in run.tasks:
            found = read_results(run.teacher_cell(task, frames.grader))
            if found is not None and found.metric in graded.get((run.suite, task), ()):
                rows.append([run.suite, found.weights, task, run.role(task), found.score])
    columns = pd.Index(["suite", "weights", "task", "role", "score"])
    return pd.DataFrame(rows, columns=columns).drop_duplicates(["suite", "weights", "task"], ignore_index=True)


def teacher_means(frames: Frames) -> dict[str, Interval]:
    """Return by label each teacher's mean score of the trained tasks; labels name suite and weights where they differ."""
    cells = teacher_cells(frames)
    trained = cells[cells["role"] == "trained"]
    varying = [key for key in ("suite", "weights") if trained[key].nunique() > 1]
    found = {}
    for keys, rows in trained.groupby(["suite", "weights"], sort=False):
        names = [value for key, value in zip(("suite", "weights"), map(str, keys), strict=True) if key in varying]
        found[", ".join(["teacher", *names])] = t_interval([rows["score"].mean()])
    return found


def describe_teacher(frames: Frames, task: str) -> str:
    """Return a sentence on the teacher's score on a task; empty where it was not scored."""
    cells = teacher_cells(frames)
    scores = cells.loc[cells["task"] == task, "score"]
    return f"The teacher scores {' and '.join(map(format_percent, scores))} %." if len(scores) else ""


def name_worse(frames: Frames) -> list[str]:
    """Return a sentence on the trained tasks where a teacher scores less than the student before any stage; none without."""
    cells = teacher_cells(frames)
    start = frames.scores[frames.scores["stage"] == 0].groupby(["suite", "task"])["score"].mean().rename("start")
    both = cells[cells["role"] == "trained"].merge(start.reset_index(), on=["suite", "task"])
    worse = both[both["score"] <= both["start"] - WORSE_TEACHER]
    named = [
        f"{row['task']} (teacher {format_percent(row['score'])} %, start {format_percent(row['start'])} %)"
        for row in worse.to_dict("records")
    ]
    return [f"The teacher scores less than the student before any stage on {', '.join(named)}."] if named else []
