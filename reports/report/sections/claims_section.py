"""Claims judged on these runs: of the claims files that the user named, or of the shipped ones that apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reports.claims.claim_file import ClaimFile
from reports.claims.judge_claims import JudgedSetting
from reports.claims.registration import describe_source
from reports.claims.render_verdicts import RULE, verdicts_grid
from reports.document.blocks import Block, Section, Text
from reports.report.report_data import ReportData


def make_section(report_data: ReportData) -> Section | None:
    """Return the section; None where no claims were named and no shipped file is about these runs' methods."""
    if not report_data.claim_files:
        return None
    blocks = blocks_by_setting(report_data.claim_files, report_data.judged)
    return Section("claims", "Claims", "Claims, judged on these runs", [*blocks, Text(RULE, "note")])


def blocks_by_setting(files: Sequence[ClaimFile], judged: Sequence[JudgedSetting]) -> list[Block]:
    """Return sources and verdicts by suite and order; a table's title names what differs between the settings."""
    settings, blocks = [(each.suite, each.order) for each in judged], list[Block]()
    varying = [place for place in (0, 1) if len({setting[place] for setting in settings}) > 1]
    for setting, each in zip(settings, judged, strict=True):
        grid = verdicts_grid(each.verdicts)
        blocks += [Text(describe_source(file, each.evidence.runs)) for file in files]
        blocks += [replace(grid, title=", ".join([grid.title, *(setting[place] for place in varying)]))]
    return blocks
