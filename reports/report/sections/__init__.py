"""The page's sections, in the order in which a reader meets them: the answer first, then where it comes from, then how."""

from __future__ import annotations

from reports.document.blocks import Section
from reports.report.report_data import ReportData
from reports.report.sections import (
    answers,
    claims,
    cost,
    drift,
    formulas,
    frontier,
    losses,
    made,
    profiles,
    retention,
    tasks,
    training,
)

MAKERS = (
    frontier.section,
    claims.section,
    retention.section,
    retention.learning,
    retention.forgetting,
    answers.flips,
    losses.section,
    training.entropy,
    drift.section,
    training.routing,
    training.pulls,
    training.agreement,
    training.warnings,
    profiles.section,
    tasks.section,
    cost.section,
    formulas.section,
    made.section,
)


def sections(report_data: ReportData) -> list[Section]:
    """Return the sections that a set of runs has something to say for."""
    return [section for make in MAKERS if (section := make(report_data)) is not None]
