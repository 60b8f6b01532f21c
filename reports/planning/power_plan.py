"""Turn variances into a plan: what the suite finds as it is, the cheapest designs that find more, and interim looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.stats.design import (
    Components,
    Design,
    PlannedDesign,
    cheapest_designs,
    detectable_difference,
    equivalence_power,
    fewest_seeds,
    power_of,
    seed_variance_limits,
    smallest_margin,
)
from harness.stats.looks import ALPHA, level_at
from harness.stats.power import POWER
from reports.formatting import format_effect, format_hours, format_seeds
from reports.planning.pilot import NoPlan, PlanningBasis

SEEDS_SHOWN = (3, 5, 10, 20)
SHARES = (0.25, 0.5, 1, 2, 4)  # of the items that the pilot had
ANSWERS = (1, 2, 4, 8, 16)
MOST_DESIGNS = 3


@dataclass(frozen=True)
class Resolution:
    """What a design must show for one of a claim's two questions, and which designs show it; sizes are in the claim's unit.

    The question is whether a true difference of `size` is found, or whether methods without any are shown to be equal within
    ±`size`. `power` is that of the suite's own design, `smallest` the smallest size that it resolves with the usual power,
    `by_seeds` the same by number of seeds, with the suite's items. `cheapest` are the cheapest designs within the hours,
    `any_cost` is the cheapest of all, and `seeds_between` are the fewest and the most seeds that it may take, because a few
    seeds tell the variance between seeds only roughly (an 80 % interval; None is more than can be planned). `own_items` is
    the fewest seeds with the suite's own items and answers.
    """

    size: float
    power: float
    smallest: float
    by_seeds: dict[int, float]
    cheapest: tuple[PlannedDesign, ...] = ()
    any_cost: PlannedDesign | None = None
    seeds_between: tuple[int | None, int | None] = (None, None)
    own_items: int | None = None

    @property
    def resolved(self) -> bool:
        """Whether the suite as it is has the usual power."""
        return self.power >= POWER


@dataclass(frozen=True)
class ClaimPlan:
    """A claim's plan for the suite's `own` design: to find a difference, and with a margin to show equivalence.

    `alpha` is the level of its tests: that of the last look.
    """

    subject: PlanningBasis
    own: Design
    difference: Resolution
    equivalence: Resolution | None
    alpha: float = ALPHA

    @property
    def sentence(self) -> str:
        """Say what the suite cannot resolve and what would; empty where it resolves all that is asked."""
        subject, found, equal = self.subject, self.difference, self.equivalence
        parts: list[str] = []
        if 0 < found.size <= subject.smallest_effect:
            parts.append(
                f"never support it where the difference is {found.size:g}, because the claim asks for more than "
                f"{subject.smallest_effect:g} {subject.unit} (plan a larger --effect)"
            )
        elif found.size and not found.resolved:
            smallest = f"{format_effect(found.smallest)} {subject.unit} or more"
            finds = smallest if math.isfinite(found.smallest) else "nothing"
            parts.append(f"find {finds}, not {found.size:g} ({self._remedy(found)})")
        when = "" if parts or not found.size else " where the methods are equal"
        if equal is not None and not equal.resolved:
            share = f"in {100 * equal.power:.0f} % of studies ({self._remedy(equal)})"
            parts.append(f"show equal methods to be equal within {equal.size:g} {subject.unit} {share}")
        items = f" and {self.own.clusters} independent items" if subject.items else ""
        opening = f"{subject.name} cannot be resolved{when}: {self.own.seeds} seeds{items}"
        return f"{opening} {', and '.join(parts)}" if parts else ""

    def _remedy(self, wanted: Resolution) -> str:
        if wanted.any_cost is None:
            return f"no number of seeds does with up to {max(SHARES):g} times these items"
        design = wanted.any_cost.design
        answers = f"{design.answers} answers" if design.answers > 1 else "one answer"
        more = f" on {design.clusters} items with {answers} each" if self.subject.items else ""
        between, pilot = format_seeds(wanted.seeds_between), self.subject.design.seeds
        would = f"{design.seeds} seeds{more} would, in {format_hours(wanted.any_cost.hours)}"
        return f"{would}; it may be {between}, because {pilot} seeds gave the variances"


def plan_claim(
    subject: PlanningBasis, effect: float, seeds: int, answers: int, hours: float = math.inf, looks: Sequence[int] = ()
) -> ClaimPlan:
    """Return a claim's plan for a true difference of `effect`, in its unit, and a suite of `seeds` seeds.

    A difference is found where the claim is supported: where it is shown to be larger than the claim's smallest effect. With
    an interval k times as wide, of a mean that varies as much more, it has to be k times as large.
    """
    alpha = level_at(looks[-1], looks) if looks else ALPHA
    parts, scale, own = subject.components, subject.scale, Design(seeds, subject.design.clusters, answers)
    # Other numbers of answers are planned only where the pilot shows how answers vary.
    some_answers = ANSWERS if parts.answers > 0 else (answers,)
    items = sorted({max(2, round(share * subject.design.clusters)) for share in SHARES}) if subject.items else [2]

    def resolution(size: float, equal: bool) -> Resolution:
        beyond = size if equal else size - subject.smallest_effect

        def power(design: Design, parts: Components = parts) -> float:
            unwidened = beyond / scale / subject.widening(design.seeds)
            return (equivalence_power if equal else power_of)(unwidened, parts, design, alpha=alpha)

        def smallest(design: Design) -> float:
            found = (smallest_margin if equal else detectable_difference)(parts, design, alpha=alpha)
            found *= scale * subject.widening(design.seeds)
            return found if equal else found + subject.smallest_effect

        own_power = math.nan if not size else power(own) if beyond > 0 else 0.0
        plain = Resolution(size, own_power, smallest(own), {n: smallest(replace(own, seeds=n)) for n in SEEDS_SHOWN})
        if not size or beyond <= 0:
            return plain
        designs = cheapest_designs(power, subject.costs, items, some_answers)
        within = [planned for planned in designs if planned.hours <= hours]
        limits = seed_variance_limits(parts, subject.design) if designs else ()
        between = [fewest_seeds(lambda n, at=at: power(replace(designs[0].design, seeds=n), at)) for at in limits]
        return replace(
            plain,
            cheapest=tuple(within[:MOST_DESIGNS]),
            any_cost=designs[0] if designs else None,
            seeds_between=(between[0], between[1]) if between else (None, None),
            own_items=fewest_seeds(lambda number: power(replace(own, seeds=number))),
        )

    equivalence = resolution(subject.margin, True) if subject.margin else None
    return ClaimPlan(subject, own, resolution(effect, False), equivalence, alpha)


def power_curve_of(plan: ClaimPlan, most_hours: float) -> list[tuple[float, float]]:
    """Return pairs of hours and the smallest effect found, for growing numbers of seeds with the suite's items and answers."""
    points: list[tuple[float, float]] = []
    seeds = 3
    while seeds <= 200:
        design = replace(plan.own, seeds=seeds)
        if (hours := plan.subject.costs.hours(design)) > most_hours and len(points) > 2:
            break
        smallest = detectable_difference(plan.subject.components, design, alpha=plan.alpha)
        smallest *= plan.subject.scale * plan.subject.widening(seeds)
        points.append((hours, smallest + plan.subject.smallest_effect))
        seeds += max(1, seeds // 8)
    return points


def plan_all(
    subjects: Sequence[PlanningBasis | NoPlan],
    effect: float,
    hours: float = math.inf,
    looks: Sequence[int] = (),
) -> list[ClaimPlan | NoPlan]:
    """Return the plan of each claim; `effect` is in points, and of claims in other units only what is found is planned."""
    plans: list[ClaimPlan | NoPlan] = []
    for subject in subjects:
        if isinstance(subject, NoPlan):
            plans.append(subject)
            continue
        wanted = effect if subject.unit == "points" else 0.0
        plans.append(plan_claim(subject, wanted, subject.seeds, subject.design.answers, hours, looks))
    return plans
