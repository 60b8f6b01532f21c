"""What a source claims, judged on these runs: the claim files that the user named, or the shipped ones that apply."""

from __future__ import annotations

from reports.claims_file import ClaimFile, read_claims
from reports.claims_judge import verdicts
from reports.claims_views import RULE, verdicts_grid
from reports.findings import Findings
from reports.frames import Frames
from reports.methods import methods_of
from reports.page import Section, Text

SHIPPED = {"aopd": {"opd", "aopd"}}


def section(findings: Findings) -> Section | None:
    """Return the section; None where no claims were named and no shipped file speaks of these runs' methods."""
    files = findings.claims or shipped_for(findings.frames)
    if not files:
        return None
    found = verdicts([claim for file in files for claim in file.claims], methods_of(findings.frames))
    sources = [Text(f"{file.title}, claimed in {file.source}.") for file in files]
    return Section(
        "claims", "Claims", "Claims, judged on these runs", [*sources, verdicts_grid(found), Text(RULE, "note")]
    )


def shipped_for(frames: Frames) -> list[ClaimFile]:
    """Return the shipped claim files whose methods are all among the runs."""
    adapters = {run.adapter for run in frames.runs}
    return [read_claims(name) for name, needed in SHIPPED.items() if needed <= adapters]
