"""Learning against forgetting: each method's mark, and what was kept where two methods learned equally."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.rundir.reader import IDENTITY
from harness.stats.intervals import Interval
from harness.stats.learning.matching import MARGIN, MATCHED
from reports.data.matched_pairs import COMPARED, SINGLE
from reports.data.tables import figures_by_seed
from reports.document.blocks import Grid, Picture, Section, Text
from reports.figures.draw_frontier import draw_frontier
from reports.formatting import format_interval, format_percent, format_points
from reports.report.ends import start_scores
from reports.report.report_data import ReportData
from reports.report.teacher_scores import name_worse, teacher_means

CAPTION = (
    "Up: learned more. Left: forgot less. Large marks are means over seeds, small dots single seeds, bars 95 % t "
    "intervals over seeds, cut at the frame; a hollow mark is one seed."
)
JUDGED = (
    "A method that learns less has less to forget, so forgetting at the end is compared only where learning is matched: where "
    f"the whole 95 % interval of the difference in learning accuracy lies within ±{100 * MARGIN:g} points. Differences are "
    "the first minus the second, paired over seeds, with intervals for another seed and other items."
)


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    values = figures_by_seed(report_data.frames.scores)
    by_seed = values.pivot(index=IDENTITY, columns="figure", values="value")
    names = {figure.name: name for name, figure in COMPARED.items()}
    dots = by_seed[list(names)].rename(columns=names).reset_index()
    picture = Picture(
        "frontier",
        "Learning against forgetting",
        CAPTION,
        lambda: draw_frontier(report_data.frontier, dots),
        _alt(report_data),
        narrow=lambda: draw_frontier(report_data.frontier, dots, narrow=True),
    )
    pairs = matched_grid(report_data.matched)
    compared = [Text(JUDGED, "note"), pairs] if pairs.rows else []
    frames = report_data.frames
    glance = glance_grid(report_data.frontier, start_scores(frames), teacher_means(frames))
    warnings = [Text(sentence, "warning") for sentence in name_worse(frames)]
    return Section("frontier", "Learning and forgetting", picture.title, [*warnings, glance, picture, *compared])


def glance_grid(frontier: pd.DataFrame, starts: Mapping[str, Interval], teachers: Mapping[str, Interval]) -> Grid:
    """Return a row each for teachers, starts and methods: learned, final and forgotten, with intervals."""
    rows = [[name, "–", "–", format_percent(found.mean), "–"] for name, found in teachers.items()]
    rows += [[name, str(found.seeds), "–", format_interval(found), "–"] for name, found in starts.items()]
    rows += [
        [
            str(row["label"]),
            str(row["learned"].seeds),
            *(_cell(row, name) for name in ("learned", "final")),
            _cell(row, "forgot", signed=True),
        ]
        for row in frontier.to_dict("records")
    ]
    header = ["method", "seeds", "learned % ↑", "at the end % ↑", "forgotten, points ↓"]
    return Grid("Methods at a glance, mean with 95 % interval over seeds", header, rows)


def matched_grid(pairs: pd.DataFrame) -> Grid:
    """Return a row per pair of methods: differences at the end, in learning, and in forgetting where learning is matched."""
    rows = []
    for row in pairs.to_dict("records"):
        unjudged = "not judged: one seed" if row["status"] == SINGLE else "unmatched"
        forgot = _cell(row, "forgot", signed=True) if row["status"] == MATCHED else unjudged
        found = [_cell(row, name, signed=True) for name in ("final", "learned")]
        rows.append([f"{row['label']} − {row['against']}", str(row["seeds"]), *found, str(row["status"]), forgot])
    header = ["methods", "seeds", "at the end, points", "learned, points", "learning is", "forgotten, points ↓"]
    return Grid("Paired differences, and what was kept where learning is matched", header, rows)


def _cell(row: dict[Any, Any], name: str, *, signed: bool = False) -> str:
    return format_interval(row[name], format_points if signed else format_percent)


def _alt(report_data: ReportData) -> str:
    points = [
        f"{row['label']} learned {format_percent(row['learned'].mean)} % and forgot {format_points(row['forgot'].mean)} points"
        for row in report_data.frontier.to_dict("records")
    ]
    return f"Scatter of learning accuracy against forgetting: {'; '.join(points)}."
