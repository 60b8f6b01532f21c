"""Claims judged on these runs: of the claims files that the user named, or of the shipped ones that apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reports.claims.claim_file import ClaimFile, shipped_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import judge_claims
from reports.claims.registration import describe_source
from reports.claims.render_verdicts import RULE, verdicts_grid
from reports.data.methods import Method, by_setting, methods_of
from reports.document.blocks import Grid, Section, Text
from reports.report.report_data import ReportData


def make_section(report_data: ReportData) -> Section | None:
    """Return the section; None where no claims were named and no shipped file is about these runs' methods."""
    files = report_data.claims or shipped_claims({run.adapter for run in report_data.frames.runs})
    if not files:
        return None
    sources = [Text(describe_source(file, report_data.frames.runs)) for file in files]
    grids = grids_by_setting(files, methods_of(report_data.frames))
    return Section("claims", "Claims", "Claims, judged on these runs", [*sources, *grids, Text(RULE, "note")])


def grids_by_setting(files: Sequence[ClaimFile], methods: Sequence[Method]) -> list[Grid]:
    """Return a grid per suite and order, because a claim identifies a method only by its adapter's name and its start."""
    settings = by_setting(methods)
    varying = [place for place in (0, 1) if len({setting[place] for setting in settings}) > 1]
    grids = {setting: verdicts_grid(judge_claims(files, Evidence(found))) for setting, found in settings.items()}
    return [
        replace(grid, title=", ".join([grid.title, *(setting[place] for place in varying)]))
        for setting, grid in grids.items()
    ]
