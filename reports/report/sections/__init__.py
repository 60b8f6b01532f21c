"""The page's sections in reading order: results first, then what explains them, then provenance.

To add a section, write a module `<anchor>_section.py` whose `make_section` returns a `Section` (or None where there is
nothing to show), and add it to `MAKERS`. `docs/add-a-section.md` shows each step.
"""

from __future__ import annotations

from collections.abc import Callable

from reports.document.blocks import Section
from reports.report.report_data import ReportData
from reports.report.sections import (
    claims_section,
    cost_section,
    curves_section,
    drift_section,
    figures_section,
    flips_section,
    frontier_section,
    outcomes_section,
    profiles_section,
    provenance_section,
    pulls_section,
    retention_section,
    tasks_section,
    training_section,
)

MAKERS: tuple[Callable[[ReportData], Section | None], ...] = (
    frontier_section.make_section,
    curves_section.make_section,
    claims_section.make_section,
    retention_section.make_section,
    retention_section.make_learning,
    retention_section.make_forgetting,
    tasks_section.make_section,
    flips_section.make_section,
    outcomes_section.make_section,
    training_section.make_warnings,
    training_section.make_entropy,
    drift_section.make_section,
    training_section.make_routing,
    pulls_section.make_pulls,
    pulls_section.make_agreement,
    profiles_section.make_section,
    cost_section.make_section,
    figures_section.make_section,
    provenance_section.make_section,
)


def make_sections(report_data: ReportData) -> list[Section]:
    """Return the sections that have something to show for a set of runs."""
    return [section for make in MAKERS if (section := make(report_data)) is not None]
