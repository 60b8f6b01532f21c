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
from reports.document.blocks import Block, Section, Text
from reports.report.report_data import ReportData


def make_section(report_data: ReportData) -> Section | None:
    """Return the section; None where no claims were named and no shipped file is about these runs' methods."""
    files = report_data.claims or shipped_claims({run.adapter for run in report_data.frames.runs})
    if not files:
        return None
    blocks = blocks_by_setting(files, methods_of(report_data.frames))
    return Section("claims", "Claims", "Claims, judged on these runs", [*blocks, Text(RULE, "note")])


def blocks_by_setting(files: Sequence[ClaimFile], methods: Sequence[Method]) -> list[Block]:
    """Return sources and verdicts by suite and order, since a claim names a method by its adapter and its start alone.

    Primary claims are tested in the first of them, once.
    """
    settings, blocks = by_setting(methods), list[Block]()
    varying = [place for place in (0, 1) if len({setting[place] for setting in settings}) > 1]
    for number, (setting, found) in enumerate(settings.items()):
        evidence, names = Evidence(found), [setting[place] for place in varying]
        grid = verdicts_grid(judge_claims(files, evidence, primary=number == 0))
        blocks += [Text(describe_source(file, evidence.runs)) for file in files]
        blocks += [replace(grid, title=", ".join([grid.title, *names]))]
    return blocks
