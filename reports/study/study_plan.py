"""What a study's claims will be judged on, before its runs exist: runs at other starts and learning rates, and branches."""

from __future__ import annotations

from harness.pipeline.sweeps.study_runs import Plan
from reports.data.frames import Frames
from reports.planning.planned_runs import PlannedRuns, is_branch
from reports.study.study_results import Results


def judged_runs(plan: Plan) -> PlannedRuns:
    """Return the runs that the study's claims are judged on, see `study_verdicts.judge_study`."""
    results = Results(plan, Frames(()), ())
    entries = dict.fromkeys(spec.entry for spec in plan.specs)
    configs = {
        (config.suite, entry)
        for start in results.starts
        for entry in entries
        for config in results.rates(start, entry).values()
    }
    specs = [spec for spec in plan.specs if (spec.suite.name, spec.entry) in configs]
    branches = {spec.path: spec for point in plan.points if is_branch(spec := point.spec)}
    return PlannedRuns(plan.base, specs, list(branches.values()))
