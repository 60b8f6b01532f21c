"""The retention matrix, its diagonal (learning) and its columns (forgetting)."""

from __future__ import annotations

from reports.document import grids
from reports.document.blocks import Folded, Picture, Section, Text
from reports.figures.draw_scores import draw_forgetting, draw_learning, draw_retention
from reports.figures.style import MANY
from reports.report.report_data import ReportData

MATRIX = (
    "Each cell is a task's score after a stage; read down a column to follow one task. A frame marks the stage that "
    "trained the task. Probes (right of the line) are never trained. With several seeds, small numbers are the lowest "
    "and the highest. Click a cell to read its answers."
)
BEFORE = " A task marked (trained before) was trained before the start, by another run."
DIAGONAL = (
    "Filled marks are scores right after the task's own stage, hollow marks right before it. Bars run from the lowest to the "
    "highest seed."
)
COLUMNS = (
    "Shading marks the task's own stage. A fall to its right is forgetting; a fall to its left happened before the task was "
    "trained. The band runs from the lowest to the highest seed."
)
TABLES = (
    "Score in %. Bold: the task that the stage trained. A t interval over few seeds is wide; it is cut at 0 and 100."
)


def make_section(report_data: ReportData) -> Section:
    """Return the matrix as a figure and as tables."""
    scores = report_data.frames.scores
    picture = Picture(
        "retention",
        "Retention: what each stage did to every task",
        MATRIX + BEFORE * bool((scores["role"] == "trained before").any()),
        lambda: draw_retention(scores, report_data.link),
        "Matrix of scores by stage and task, one per method; the tables below hold its numbers.",
        narrow=lambda: draw_retention(scores, report_data.link, narrow=True),
    )
    tables = Folded(
        "The same as tables, with 95 % t intervals over seeds", [*grids.retention_grids(scores), Text(TABLES, "note")]
    )
    return Section("retention", "Retention", picture.title, [picture, tables])


def make_learning(report_data: ReportData) -> Section:
    """Return each task's score before and after its own stage."""
    title = "Learning: each task at its own stage"
    scores = report_data.frames.scores
    alt = "Score of each trained task right before and right after its own stage, by method."
    few = scores["label"].nunique() <= MANY
    narrow = (lambda: draw_learning(scores, narrow=True)) if few else None
    picture = Picture("learning", title, DIAGONAL, lambda: draw_learning(scores), alt, narrow=narrow)
    return Section("learning", "Learning", title, [picture])


def make_forgetting(report_data: ReportData) -> Section:
    """Return each task's score through the stages."""
    title = "Forgetting: each task through the stages"
    scores = report_data.frames.scores
    alt = "Score of each task from the start to the last stage, by method, its own stage marked."
    few = scores["label"].nunique() <= MANY
    narrow = (lambda: draw_forgetting(scores, narrow=True)) if few else None
    picture = Picture("forgetting", title, COLUMNS, lambda: draw_forgetting(scores), alt, narrow=narrow)
    return Section("forgetting", "Forgetting", title, [picture])
