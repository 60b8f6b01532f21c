"""What the runs cost: time by phase, tokens, and peak memory where it was recorded."""

from __future__ import annotations

from reports import views
from reports.figures_training import cost_bars
from reports.findings import Findings
from reports.page import Picture, Section, Text
from reports.tables import cost

NOTE = (
    "Mean per run. Seconds of generation, teacher scoring and student (forward, backward, optimiser), which the "
    "whole step holds, and of evaluation; tokens of prompts and answers in training."
)


def section(findings: Findings) -> Section:
    """Return the section."""
    table = cost(findings.frames)
    alt = "Seconds of one run by phase, a bar per method; the table below holds its numbers."
    picture = Picture("cost", "Seconds of one run by phase", "Mean over runs.", lambda: cost_bars(table), alt)
    return Section("cost", "Cost", "What it cost", [picture, Text(NOTE, "note"), views.cost_grid(findings.frames)])
