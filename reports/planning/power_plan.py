"""Turn variances into a plan: what the suite finds as it is, the cheapest designs that find more, and interim looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.stats.design import (
    ALPHA,
    Design,
    PlannedDesign,
    cheapest_designs,
    detectable_difference,
    power_of,
    seeds_for,
)
from harness.stats.looks import look_levels
from harness.stats.power import POWER
from reports.claims.planned_looks import list_looks
from reports.planning.pilot import NoPlan, Planning, read_priors

SEEDS = (3, 5, 10, 20)
SHARES = (0.25, 0.5, 1, 2, 4)  # of the items that the pilot had
ANSWERS = (1, 2, 4, 8, 16)
MOST_DESIGNS = 3
FORESEEN = {
    "learning_accuracy": "learning",
    "average_accuracy": "final accuracy",
    "forgetting_chaudhry": "forgetting",
}


@dataclass(frozen=True)
class ClaimPlan:
    """A claim's plan; effects are in the claim's unit.

    `own` is the suite's design, with the smallest effect that it finds (`detectable`) and its `power` for `effect`. `found` is
    the smallest effect by number of seeds, with the suite's items. `cheapest` are the cheapest designs within the hours,
    `any_cost` is the cheapest of all.
    """

    subject: Planning
    effect: float
    own: Design
    detectable: float
    power: float
    found: dict[int, float]
    cheapest: tuple[PlannedDesign, ...]
    any_cost: PlannedDesign | None

    @property
    def resolved(self) -> bool:
        """Whether the suite as it is finds the effect with the usual power."""
        return self.power >= POWER

    @property
    def sentence(self) -> str:
        """Say what a suite that cannot resolve the claim needs; empty where it can, or where no effect is asked for."""
        subject, own = self.subject, self.own
        if self.resolved or not self.effect:
            return ""
        items = f" and {own.clusters} independent items" if subject.items else ""
        found = (
            f"{format_effect(self.detectable)} {subject.unit} or more" if math.isfinite(self.detectable) else "nothing"
        )
        opening = f"{subject.name} cannot be resolved: {own.seeds} seeds{items} find {found}, not {self.effect:g}"
        if self.any_cost is None:
            return f"{opening}; no number of seeds does with up to {max(SHARES):g} times these items"
        design = self.any_cost.design
        answers = f"{design.answers} answers" if design.answers > 1 else "one answer"
        more = f" on {design.clusters} items with {answers} each" if subject.items else ""
        return f"{opening}; {design.seeds} seeds{more} would, in {show_hours(self.any_cost.hours)}"


def plan_claim(
    subject: Planning, effect: float, seeds: int, answers: int, hours: float = math.inf, looks: Sequence[int] = ()
) -> ClaimPlan:
    """Return a claim's plan for a true difference of `effect`, in its unit, and a suite of `seeds` seeds."""
    alpha = look_levels(tuple(looks))[-1] if looks else ALPHA
    components, size = subject.components, effect / subject.scale
    # Other numbers of answers are planned only where the pilot shows how answers vary.
    some_answers = ANSWERS if components.answers > 0 else (answers,)
    items = sorted({max(2, round(share * subject.design.clusters)) for share in SHARES}) if subject.items else [2]
    own = Design(seeds, subject.design.clusters, answers)
    designs = cheapest_designs(size, components, subject.costs, items, some_answers, alpha=alpha) if effect else []
    within = [planned for planned in designs if planned.hours <= hours]
    return ClaimPlan(
        subject=subject,
        effect=effect,
        own=own,
        detectable=detectable_difference(components, own, alpha=alpha) * subject.scale,
        power=power_of(size, components, own, alpha) if effect else math.nan,
        found={n: detectable_difference(components, replace(own, seeds=n), alpha=alpha) * subject.scale for n in SEEDS},
        cheapest=tuple(within[:MOST_DESIGNS]),
        any_cost=designs[0] if designs else None,
    )


def power_curve_of(plan: ClaimPlan, most_hours: float) -> list[tuple[float, float]]:
    """Return pairs of hours and the smallest effect found, for growing numbers of seeds with the suite's items and answers."""
    points: list[tuple[float, float]] = []
    seeds = 3
    while seeds <= 200:
        design = replace(plan.own, seeds=seeds)
        if (hours := plan.subject.costs.hours(design)) > most_hours and len(points) > 2:
            break
        points.append((hours, detectable_difference(plan.subject.components, design) * plan.subject.scale))
        seeds += max(1, seeds // 8)
    return points


def fewest_seeds(plan: ClaimPlan) -> int | None:
    """Return the fewest seeds that find the effect with the suite's items and answers; None where no number does."""
    subject, own = plan.subject, plan.own
    return seeds_for(plan.effect / subject.scale, subject.components, own.clusters, own.answers)


def plan_all(
    subjects: Sequence[Planning | NoPlan],
    effect: float,
    smallest: dict[str, float],
    seeds: int,
    hours: float = math.inf,
    looks: Sequence[int] = (),
) -> list[ClaimPlan | NoPlan]:
    """Return the plan of each claim; `effect` is in points, and claims in other units use their value in `smallest`."""
    plans: list[ClaimPlan | NoPlan] = []
    for subject in subjects:
        if isinstance(subject, NoPlan):
            plans.append(subject)
            continue
        wanted = effect if subject.unit == "points" else smallest.get(subject.name.split()[0], 0.0)
        plans.append(plan_claim(subject, wanted, seeds, subject.design.answers, hours, looks))
    return plans


def describe_looks(looks: Sequence[int]) -> str:
    """Return a sentence on the rule for interim looks, with the level of each look."""
    return f"{list_looks(looks)} Stop at the first look that finds the effect."


def foresee_differences(seeds: int, items: int | None, answers: int) -> str:
    """Return a sentence on the smallest differences between two methods that a suite finds, by the shipped priors."""
    if seeds < 2:
        return "one seed resolves no difference between methods: see harness plan"
    priors = read_priors()
    found: list[str] = []
    for figure, name in FORESEEN.items():
        prior = priors.figures[figure]
        clusters = max(2, round(prior.clusters * (items or priors.items) / priors.items))
        smallest = 100 * detectable_difference(prior.components(answers), Design(seeds, clusters, answers))
        found.append(
            f"{name} from {format_effect(smallest)} points" if math.isfinite(smallest) else f"{name}: none of any size"
        )
    return (
        f"these {seeds} seeds find differences in {', in '.join(found)} (80 % power, by shipped priors); a claim of less "
        "cannot be resolved: see harness plan"
    )


def format_effect(value: float) -> str:
    """Write an effect with one decimal, or two significant digits below 1; a dash where there is none."""
    return "–" if not math.isfinite(value) else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def show_hours(hours: float) -> str:
    """Write hours, below two hours as minutes; a dash where the pilot did not record them."""
    if math.isnan(hours):
        return "–"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.0f} h"
