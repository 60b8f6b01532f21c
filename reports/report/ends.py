"""Final scores and start scores: the sentences on where methods end, and the start's own mean."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from harness.rundir.reader import IDENTITY
from harness.stats.continual import FIGURES
from harness.stats.intervals import Interval, t_interval
from reports.compare.final_scores import describe_against_start
from reports.data.frames import Frames
from reports.data.methods import Method, by_start, methods_of
from reports.data.tables import figures_by_seed
from reports.formatting import format_interval, format_percent
from reports.report.teacher_scores import teacher_means

NAMED = 4  # up to so many methods are all named; of more, only the highest and the lowest


def start_scores(frames: Frames) -> dict[str, Interval]:
    """Return the mean score of the trained tasks before any stage, by label, with a t interval over seeds.

    The label is `start`, with suite and start where these differ. Runs of one suite, start and seed have the same student,
    which counts once, and not before all of its tasks are evaluated.
    """
    cells = frames.scores[(frames.scores["stage"] == 0) & (frames.scores["role"] == "trained")]
    by_run = cells.groupby(IDENTITY, sort=False)["score"].mean(skipna=False).dropna().reset_index()
    students = by_run.drop_duplicates(["suite", "start", "seed"])
    varying = [key for key in ("suite", "start") if students[key].nunique() > 1]
    found = {}
    for keys, rows in students.groupby(["suite", "start"], sort=False):
        suite, start = map(str, keys)
        names = [suite] * ("suite" in varying) + [start or "-"] * ("start" in varying)
        found[", ".join(["start", *names])] = t_interval(rows["score"]).of_unit("%")
    return found


def describe_ends(frames: Frames) -> list[str]:
    """Return per suite, order and start the final scores of methods and controls, and which methods end below their start.

    `reports.compare.headline` states the paired differences.
    """
    values = figures_by_seed(frames.scores)
    return [
        sentence
        for methods in by_start(methods_of(frames)).values()
        for sentence in _describe_group(methods, frames, values)
    ]


def _describe_group(group: list[Method], frames: Frames, values: pd.DataFrame) -> Iterator[str]:
    methods = [method for method in group if not method.control]
    known = {method.name: _figure(values, method.name, "average_accuracy") for method in group}
    ends = {method.name: known[method.name] for method in methods if known[method.name].seeds}
    if not ends:
        return
    # The start of a seed that has not ended would put a difference between seeds between start and end.
    scored = values[(values["figure"] == "average_accuracy") & values["value"].notna()]
    ended = set(zip(scored["label"], scored["seed"], strict=True))
    runs = tuple(run for method in methods for run in method.frames.runs if (method.name, run.seed) in ended)
    own_runs = Frames(runs, grader=frames.grader)
    starts, teachers = start_scores(own_runs), teacher_means(own_runs)
    controls = [method.name for method in group if method.control and known[method.name].seeds]
    named = [f"the start had {format_interval(found)} %" for found in starts.values()]
    named += [f"the {name} has {format_percent(found.mean)} %" for name, found in teachers.items()]
    start = "; ".join([*named, *(f"{name} {format_interval(known[name])} %" for name in controls)])
    if len(ends) > NAMED:
        high, low = (pick(ends, key=lambda name: ends[name].mean) for pick in (max, min))
        named = f"{high} is highest with {format_interval(ends[high])} % and {low} lowest with {format_interval(ends[low])} %"
        yield f"At the end {named}, mean of all trained tasks; {start}."
    else:
        named = ", ".join(f"{name} {format_interval(end)} %" for name, end in ends.items())
        yield f"At the end, mean of all trained tasks: {named}; {start}."
    yield from describe_against_start(methods)


def _figure(values: pd.DataFrame, label: str, figure: str) -> Interval:
    own = values.loc[(values["label"] == label) & (values["figure"] == figure), "value"]
    return t_interval(own).of_unit(FIGURES[figure].unit)
