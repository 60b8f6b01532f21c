"""Estimate the variance of a claim's effect by source and the cost of its runs, from pilot runs.

A pilot is a few finished runs of the methods that a claim compares. Its scores form one crossed table, seeds by clusters of
items, whose mean is the effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.stats.design import Components, Costs, Design, estimate_components
from harness.stats.estimates import Estimate
from harness.stats.learning.rates import largest_widening
from harness.stats.score_matrix import Figure
from reports.claims.claim_file import UNITS, ClaimEntry, claim_metrics, metrics_of_tasks
from reports.claims.evidence import ClaimScope, Evidence, fill, measure_effect
from reports.claims.grammar import Metric
from reports.claims.judge_claims import places
from reports.data.methods import Method
from reports.planning.planned_runs import PlannedRuns

ProfiledClaim = tuple[ClaimEntry, str]  # a claim and the evaluation profile of its scores, empty for the first profile
WITHOUT_ITEMS = 2  # clusters of a quantity without items: any number gives the same plan, because their variance is 0


@dataclass(frozen=True)
class PlanningBasis:
    """One claim at one place, with the variances and costs that its plan needs.

    `components` are variances of scores in 0..1. `design` is the size of the pilot. `items` is False where the effect is not a
    mean over items, like a figure of the step log. `source` says where the variances come from. `margin` (0: none) and
    `smallest_effect` are the claim's, in its unit. `seeds` is the number of seeds that the planned runs have. `best_rate`: the
    claim is judged at the best learning rate.
    """

    name: str
    text: str
    unit: str
    components: Components
    design: Design
    costs: Costs
    source: str
    items: bool = True
    margin: float = 0.0
    smallest_effect: float = 0.0
    seeds: int = 0
    best_rate: bool = False

    @property
    def scale(self) -> float:
        """The factor from scores in 0..1 to the claim's unit."""
        return UNITS[self.unit]

    def widening(self, seeds: int) -> float:
        """Return by how much an interval at the best rate is wider if the halves of the seeds choose different rates, else 1.

        Neither priors nor a pilot at one rate say whether they will, so the plan is for the case that has less power.
        """
        return largest_widening(seeds) if self.best_rate else 1.0


@dataclass(frozen=True)
class NoPlan:
    """A claim that cannot be planned, and why; not `judged`: the planned runs cannot test it at all."""

    name: str
    reason: str
    judged: bool = True

    @property
    def sentence(self) -> str:
        """Say that the claim cannot be planned, or not even judged, and why."""
        return f"{self.name} cannot be {'planned' if self.judged else 'judged'}: {self.reason}"


def plan_from_pilot(
    claims: Sequence[ProfiledClaim], methods: Sequence[Method], runs: PlannedRuns
) -> Iterator[PlanningBasis | NoPlan]:
    """Yield a planning basis for each claim at each of its places in the pilot, for the runs that are planned.

    A claim at the best learning rate has the variances of the pilot's own rate, the hours of all rates, and the wider interval
    of `PlanningBasis.widening`.
    """
    evidence = Evidence(methods)
    for entry, profile in claims:
        own_rate = entry.model_copy(update={"scope": entry.scope.model_copy(update={"rate": "own"})})
        planned_at = runs.place(entry)
        obstacle = runs.obstacle(entry, planned_at, profile) if entry.scope.rate == "best" else ""
        if obstacle:
            yield NoPlan(entry.name, obstacle, judged=False)
            continue
        found = list(places(entry, evidence))
        for place in found:
            planned = _from_pilot(own_rate, place, profile, evidence)
            if isinstance(planned, PlanningBasis):
                costs = replace(planned.costs, methods=runs.runs_per_seed(entry, planned_at))
                seeds = runs.seeds(entry, planned_at) if planned_at else 0
                best = entry.scope.rate == "best"
                planned = replace(planned, costs=costs, seeds=seeds or len(runs.base.seeds), best_rate=best)
            yield planned
        if not found:
            starts = ", ".join(evidence.starts) or "none"
            yield NoPlan(entry.name, f"the pilot has the starts {starts}, and the claim needs others")


def _from_pilot(entry: ClaimEntry, place: ClaimScope, profile: str, evidence: Evidence) -> PlanningBasis | NoPlan:
    where = " ".join(part for part in (place.task, place.start, place.other) if part)
    name = f"{entry.name} {where}".strip()
    found = measure_effect(entry, place, profile, evidence)
    if found.reason:
        return NoPlan(name, found.reason)
    effect = found.estimate
    if len(effect.by_seed) < 2:
        return NoPlan(
            name, f"its methods share {len(effect.by_seed)} of the pilot's seeds; a plan needs at least 2 seeds"
        )
    involved = [method for method in evidence.methods if method.first.adapter in entry.parsed.adapters]
    methods = [shown for method in involved if (shown := method.under(found.profile)) is not None]
    text = fill(entry.text, place)
    sizes = {"margin": entry.margin or 0.0, "smallest_effect": entry.smallest_effect}
    table = crossed_table(effect)
    if table is None or min(table.shape) < 2:
        components = Components(float(np.var(effect.values, ddof=1)), 0.0, 0.0)
        design = Design(len(effect.by_seed), WITHOUT_ITEMS)
        costs = _costs(involved, design)
        planning = PlanningBasis(name, text, entry.unit, components, design, costs, "pilot", items=False)
        return replace(planning, **sizes)
    # Curves do not keep single answers, so their variance is part of seed by item.
    variance, answers = (0.0, 1) if entry.at == "equal_learning" else _answer_variance(entry, place, methods)
    components = estimate_components(table, variance, answers)
    design = Design(table.shape[0], table.shape[1], answers)
    costs = _costs(involved, design)
    return replace(PlanningBasis(name, text, entry.unit, components, design, costs, "pilot"), **sizes)


def crossed_table(effect: Estimate) -> NDArray[np.float64] | None:
    """Return the effect as an array (seeds, clusters of items) whose mean is the effect, constants aside; None without items.

    Each task's clusters are weighted so that the mean over all of them is the sum of the tasks' means over items. The fixed
    differences between tasks are taken out, because they are not chance.
    """
    blocks: list[NDArray[np.float64]] = []
    for table in effect.items.values():
        names, place = np.unique(np.array(table.clusters), return_inverse=True)
        sums = np.zeros((len(names), table.values.shape[1]))
        np.add.at(sums, place, table.values)
        blocks.append(sums.T / len(table.ids))
    count = sum(block.shape[1] for block in blocks)
    if not count:
        return None
    scaled = [block * count for block in blocks]
    mean = sum(float(block.mean()) * block.shape[1] for block in scaled) / count
    return np.concatenate([block - block.mean() + mean for block in scaled], axis=1)


def _answer_variance(entry: ClaimEntry, place: ClaimScope, methods: Sequence[Method]) -> tuple[float, int]:
    """Return the variance of one sampled answer, added over all sides, and the number of answers per item."""
    cells = list(_cells(entry, place, methods))
    count = sum({cell.task: cell.clusters for cell in cells}.values())
    return sum(count / cell.items * cell.within for cell in cells), max((cell.answers for cell in cells), default=1)


class _Cell(NamedTuple):
    """A cell of an effect; `within` is its part of the effect's variance from one sampled answer, for the mean over seeds."""

    task: str
    clusters: int
    items: int
    answers: int
    within: float


def _cells(entry: ClaimEntry, place: ClaimScope, methods: Sequence[Method]) -> Iterator[_Cell]:
    """Yield the cells of an effect, for all its methods and seeds."""
    for metric in entry.parsed.metrics:
        figure = claim_metrics()[metric.name]
        if not isinstance(figure, Figure):
            continue
        for method in (found for found in methods if _is_of(metric, place, found)):
            task = place.task if metric.name in metrics_of_tasks() else ""
            last = len(method.first.stages) if entry.scope.last is None else entry.scope.last
            sides = [scores.side(figure, last, task) for scores in method.by_seed.values()]
            for side in sides:
                for term in side.terms:
                    samples = side.evaluations.samples(term.task, term.stage)
                    if samples is None:
                        continue
                    grouped = samples.groupby("item_id")["score"]
                    drawn = int(grouped.size().max())
                    within = float(grouped.var(ddof=1).mean()) if drawn > 1 else 0.0
                    clusters = int(samples.get("cluster", samples["item_id"]).nunique())
                    weighted = term.weight**2 * within / len(sides)
                    yield _Cell(term.task, clusters, len(grouped), drawn, weighted)


def _is_of(metric: Metric, place: ClaimScope, method: Method) -> bool:
    return (method.first.adapter, method.first.start) == (metric.adapter, place.start_of(metric))


def _costs(methods: Sequence[Method], design: Design) -> Costs:
    """Return the pilot's mean hours per run; evaluation hours are divided by the effect's items and answers."""
    seconds = [run.seconds for method in methods for run in method.frames.runs]
    known = [each for each in seconds if not math.isnan(each["total"])]
    if not known:
        return Costs(math.nan, math.nan)
    evaluation = float(np.mean([each["evaluate"] for each in known])) / 3600
    training = float(np.mean([each["total"] for each in known])) / 3600 - evaluation
    return Costs(max(training, 0.0), evaluation / (design.clusters * design.answers))
