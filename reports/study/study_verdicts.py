"""A study's verdicts on the claims files that its YAML names, judged on its own runs.

The judge is that of `harness compare --claims`. A study also has runs at other learning rates, so a claim can compare each
method at its best rate.
"""

from __future__ import annotations

from reports.claims.claim_file import ClaimFile, read_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import Verdict, judge_claims
from reports.study.study_plan import planned_runs_of
from reports.study.study_results import Results


def claim_files(results: Results) -> list[ClaimFile]:
    """Return the claims files that the study names."""
    return [read_claims(name) for name in results.plan.study.claims]


def judge_study(results: Results) -> list[Verdict]:
    """Return the verdicts on the study's claims; empty where no claim has runs."""
    files = claim_files(results)
    adapters = dict.fromkeys(name for file in files for claim in file.claims for name in claim.parsed.adapters)
    by_rate = {
        (start, adapter): {
            rate: method
            for rate, config in results.layout.rates(start, adapter).items()
            if (method := results.method(config)) is not None
        }
        for start in results.layout.starts
        for adapter in adapters
    }
    own = [
        by_rate[start, adapter].get(results.layout.rate(adapter))
        for start in results.layout.starts
        for adapter in adapters
    ]
    layout = results.layout
    evidence = Evidence(
        [method for method in own if method is not None],
        by_rate,
        results.branches,
        layout.starts,
        {(start, adapter) for start, adapter in by_rate if layout.rate(adapter) in layout.rates(start, adapter)},
        {place: len(layout.rates(*place)) for place in by_rate},
        {(spec.suite.student.start_name, spec.entry) for spec in planned_runs_of(results.plan).branches},
    )
    rows = judge_claims(files, evidence, results.plan.study.planned_looks)
    return rows if any(row.effect.seeds for row in rows) else []
