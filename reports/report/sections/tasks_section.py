"""Task by task: every method's scores over the stages, one changed answer in full, and links to all answers."""

from __future__ import annotations

import pandas as pd

from harness.rundir.records.cell_records import PERPLEXITIES
from reports.data.cells import role_in_all
from reports.data.frames import Frames
from reports.document.blocks import Block, Folded, Grid, Heading, Link, Section, Text
from reports.formatting import format_interval
from reports.report.items import TaskItems
from reports.report.report_data import ReportData
from reports.report.teacher_scores import describe_teacher

ROLES = {"trained before": ", trained before the start", "probe": ", a probe that is never trained"}


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    shown = {items.task: items for items in report_data.items}
    scores = report_data.frames.scores
    without = set(scores.loc[scores["metric"].isin(PERPLEXITIES), "task"])
    blocks: list[Block] = []
    for number, task in enumerate(report_data.retention["task"].unique(), start=1):
        role = role_in_all(report_data.retention.loc[report_data.retention["task"] == task, "role"])
        name = f"{task}{ROLES.get(role, '')}"
        bold = "Bold: right after the stage that trains the task." if role == "trained" else ""
        frames = report_data.frames
        described = describe_metric(frames, str(task)), describe_teacher(frames, str(task)), bold
        blocks += [Heading(f"task-{number}", name), Text(" ".join(filter(None, described)), "note")]
        blocks += [
            task_grid(report_data.retention, str(task)),
            *_changes(shown.get(str(task)), has_outcomes=task not in without),
        ]
    return Section("tasks", "Tasks", "Task by task, with the answers that changed", blocks)


def describe_metric(frames: Frames, task: str) -> str:
    """Say what a task's score is: its metric, or the reciprocal of a perplexity, with the perplexity's values at both ends."""
    scores = frames.scores[frames.scores["task"] == task]
    names = [name for name in dict.fromkeys(scores["metric"]) if name]
    if not names:
        return "Not evaluated yet."
    if names[0] not in PERPLEXITIES:
        return f"Score: the metric {' or '.join(names)}, in %."
    values = frames.metrics[(frames.metrics["task"] == task) & (frames.metrics["metric"] == names[0])]
    ends = values.groupby("stage")["value"].mean().iloc[[0, -1]]
    own = "2 to the power of −bits_per_byte" if names[0] == "bits_per_byte" else f"1 / {names[0]}"
    return (
        f"Score: {own}, in % and higher is better; it is not a share of right answers. Mean {names[0]} of all runs: "
        f"{ends.iloc[0]:.3g} at the start, {ends.iloc[1]:.3g} after the last stage evaluated."
    )


def task_grid(retention: pd.DataFrame, task: str) -> Grid:
    """Return one task's scores: a row per method, a column per stage, its own stage strong."""
    cells = retention[retention["task"] == task]
    labels, stages = list(cells["label"].unique()), sorted(cells["stage"].unique())
    records = cells.to_dict("records")
    texts = {(c["label"], c["stage"]): format_interval(c["interval"]) for c in records}
    rows = [[str(label), *(texts.get((label, stage), "–") for stage in stages)] for label in labels]
    own = frozenset((labels.index(c["label"]), stages.index(c["stage"]) + 1) for c in records if c["own"])
    header = ["method", *(f"after stage {stage}" if stage else "start" for stage in stages)]
    return Grid(f"{task}: score in %", header, rows, own)


def _changes(items: TaskItems | None, *, has_outcomes: bool) -> list[Block]:
    if items is None and not has_outcomes:
        return [Text("Its items have no right or wrong answers, so none can change between them.", "note")]
    if items is None:
        return [Text("Its answers were not stored, so none can be read.", "missing")]
    by_profile = [("", items.pages), *((f" under profile {name}", pages) for name, pages in items.further.items())]
    links: list[Block] = [
        Link(
            page.path,
            f"Read all answers of {items.task}{under}{': ' + ', '.join(page.labels) if len(pages) > 1 else ''}",
        )
        for under, pages in by_profile
        for page in pages
    ]
    if not has_outcomes:
        return [*links, Text("Its items have no right or wrong answers, so none can change between them.", "note")]
    if items.example is None:
        return [*links, Text("No stored answer changed between right and not right.", "note")]
    return [*links, Folded(f"One of the {items.changed:,} answers that changed", [items.example])]
