"""What a dry run says before the first run: the differences that the seeds can find, and the claims that they cannot resolve.

All of it rests on the shipped priors; `harness plan` has the tables, and takes a pilot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.stats.design import Design, detectable_difference
from reports.claims.claim_file import ClaimFile
from reports.formatting import format_effect
from reports.planning import EFFECT
from reports.planning.planned_runs import PlannedRuns
from reports.planning.power_plan import plan_all
from reports.planning.shipped_priors import plan_from_priors, read_priors

FIGURES = {
    "learning_accuracy": "learning",
    "average_accuracy": "final accuracy",
    "forgetting_chaudhry": "forgetting",
}


def foresee_differences(seeds: int, items: int | None, answers: int) -> str:
    """Return a sentence on the smallest differences between two methods that a suite finds, by the shipped priors."""
    if seeds < 2:
        return "one seed resolves no difference between methods: see harness plan"
    priors = read_priors()
    found: list[str] = []
    for figure, name in FIGURES.items():
        prior = priors.figures[figure]
        design = Design(seeds, prior.sized(items, priors.items), answers)
        smallest = 100 * detectable_difference(prior.components(answers), design)
        found.append(
            f"{name} from {format_effect(smallest)} points" if math.isfinite(smallest) else f"{name}: none of any size"
        )
    return (
        f"these {seeds} seeds find differences in {', '.join(found)} (80 % power, by shipped priors); a claim of less "
        "cannot be resolved: see harness plan"
    )


def foresee_claims(files: Sequence[ClaimFile], runs: PlannedRuns) -> Iterator[str]:
    """Yield a sentence for each primary claim that the runs cannot test or resolve, and before them what it rests on."""
    sentences: list[str] = []
    for file in files:
        by_name = {claim.name: claim for claim in file.claims}
        named = [(by_name[name], file.profile_of(by_name[name])) for name in file.primary]
        plans = plan_all(list(plan_from_priors(named, runs)), EFFECT)
        sentences += [plan.sentence for plan in plans if plan.sentence]
    if sentences:
        yield f"primary claims, by shipped priors and for a difference of {EFFECT:g} points (see harness plan):"
        yield from sentences
