"""What the terminal shows before runs start and after they end: the entry `terminal` in the group `harness.reporters`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.terminal.console import waiting

if TYPE_CHECKING:
    from harness.config.run_spec import RunSpec
    from harness.pipeline.sweeps.study_runs import Plan


def render(specs: Sequence[RunSpec]) -> Path:
    """Render the report over all runs of the suite in the output folder, including runs of other commands."""
    from reports.report.build import build_report

    folder = specs[0].out / specs[0].suite.name
    return build_report([folder], folder / "report")


def summarise(console: Console, specs: Sequence[RunSpec]) -> None:
    """Print the runs' retention tables, all methods at a glance, their final scores, and the report's path."""
    from reports.compare.headline import headline
    from reports.data.frames import load_frames
    from reports.data.tables import frontier_table
    from reports.report.ends import describe_ends, start_scores
    from reports.report.sections.frontier_section import glance_grid
    from reports.report.teacher_scores import name_worse, teacher_means
    from reports.terminal.retention_table import print_glance, print_retention

    frames = load_frames([spec.path for spec in specs])
    print_retention(console, frames)
    print_glance(console, glance_grid(frontier_table(frames.scores), start_scores(frames), teacher_means(frames)))
    for sentence in [*headline(frames), *describe_ends(frames), *name_worse(frames)]:
        console.print(sentence, markup=False, highlight=False)
    with waiting("drawing the report"):
        page = render(specs)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


def foresee(console: Console, specs: Sequence[RunSpec]) -> None:
    """Print which differences these runs can find and which claims they cannot resolve, by shipped priors.

    The claims are the shipped ones on these methods, as the report judges them. Fewer than two methods have none.
    """
    suite = specs[0].suite
    trained = {spec.entry for spec in specs if spec.kind != "none"}
    if len(trained) > 1:
        from reports.claims.claim_file import shipped_claims
        from reports.planning.foreseen import foresee_claims, foresee_differences
        from reports.planning.planned_runs import PlannedRuns

        profile = next(iter(suite.evaluation.all_profiles.values()))
        seeds = len({spec.seed for spec in specs})
        _say(console, foresee_differences(seeds, suite.evaluation.limit, profile.n))
        for sentence in foresee_claims(shipped_claims(trained), PlannedRuns(suite, specs)):
            _say(console, sentence)


def foresee_study(console: Console, plan: Plan) -> None:
    """Print which of the study's claims its runs cannot test or resolve, by shipped priors."""
    from reports.claims.claim_file import read_claims
    from reports.planning.foreseen import foresee_claims
    from reports.study.study_plan import planned_runs_of

    for sentence in foresee_claims([read_claims(name) for name in plan.study.claims], planned_runs_of(plan)):
        _say(console, sentence)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def write_study(console: Console, plan: Plan, page: Path) -> None:
    """Write a study's page and print where it is."""
    from reports.study.build_study import build_study

    console.print(f"page: {build_study(plan, page)}", markup=False, highlight=False, soft_wrap=True)
