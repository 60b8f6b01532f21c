"""Estimate the variance of a claim's effect by source and the cost of its runs, from pilot runs or from shipped priors.

A pilot is a few finished runs of the methods that a claim compares. Its scores form one crossed table, seeds by clusters of
items, whose mean is the effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.config.base import Strict
from harness.config.read_yaml import read_yaml
from harness.stats.design import Components, Costs, Design, estimate_components
from harness.stats.estimates import Estimate
from harness.stats.score_matrix import Figure
from reports.claims.claim_file import UNITS, ClaimEntry, claim_metrics, metrics_of_tasks
from reports.claims.evidence import ClaimScope, Evidence, fill, measure_effect
from reports.claims.grammar import Metric
from reports.claims.judge_claims import places
from reports.data.methods import Method

PRIORS = Path(__file__).parent / "priors.yaml"
ProfiledClaim = tuple[ClaimEntry, str]  # a claim and the evaluation profile of its scores, empty for the first profile
WITHOUT_ITEMS = 2  # clusters of a quantity without items: any number gives the same plan, because their variance is 0


@dataclass(frozen=True)
class Planning:
    """One claim at one place, with the variances and costs that its plan needs.

    `components` are variances of scores in 0..1. `design` is the size of the pilot. `items` is False where the effect is not a
    mean over items, like a figure of the step log. `source` says where the variances come from.
    """

    name: str
    text: str
    unit: str
    components: Components
    design: Design
    costs: Costs
    source: str
    items: bool = True

    @property
    def scale(self) -> float:
        """The factor from scores in 0..1 to the claim's unit."""
        return UNITS[self.unit]


@dataclass(frozen=True)
class NoPlan:
    """A claim that cannot be planned, and why."""

    name: str
    reason: str


class Prior(Strict):
    """One figure's paired difference: standard deviations by source, in points, and the number of clusters measured."""

    clusters: int = Field(gt=0)
    seeds: float = Field(ge=0)
    items: float = Field(ge=0)
    seed_by_item: float = Field(ge=0)
    answer: float = Field(ge=0)

    def components(self, answers: int) -> Components:
        """Return the variances of scores in 0..1; with one answer per item, its variance is part of `seed_by_item`."""
        answer = self.answer if answers > 1 else 0.0
        return Components(*((value / 100) ** 2 for value in (self.seeds, self.items, self.seed_by_item, answer)))


class Priors(Strict):
    """Variances measured on a shipped suite, for plans without a pilot."""

    source: str
    training_hours: float = Field(gt=0, description="of one run, evaluation aside")
    evaluation_hours: float = Field(gt=0, description="of one run, one answer of each item")
    items: int = Field(gt=0, description="items of each task")
    figures: dict[str, Prior]


@cache
def read_priors() -> Priors:
    """Return the shipped priors."""
    return Priors.model_validate(read_yaml(PRIORS))


def plan_from_pilot(claims: Sequence[ProfiledClaim], methods: Sequence[Method]) -> Iterator[Planning | NoPlan]:
    """Yield a planning basis for each claim at each of its places; a claim at the best rate is planned at the own rate."""
    evidence = Evidence(methods)
    for entry, profile in claims:
        own_rate = entry.model_copy(update={"scope": entry.scope.model_copy(update={"rate": "own"})})
        found = list(places(entry, evidence))
        for place in found:
            yield _from_pilot(own_rate, place, profile, evidence)
        if not found:
            starts = ", ".join(evidence.starts) or "none"
            yield NoPlan(entry.name, f"the pilot has the starts {starts}, and the claim needs others")


def plan_from_priors(
    claims: Sequence[ProfiledClaim], items: int | None, answers: Mapping[str, int]
) -> Iterator[Planning | NoPlan]:
    """Yield a planning basis for each claim from the shipped priors.

    `items` is the number of test items of each task of the suite (None: as in the priors). `answers` is the number of answers
    per item by profile, the suite's first profile first.
    """
    priors = read_priors()
    for entry, profile in claims:
        figures = list(dict.fromkeys(metric.name for metric in entry.parsed.metrics))
        prior = priors.figures.get(figures[0]) if len(figures) == 1 and len(entry.parsed.metrics) == 2 else None
        if prior is None:
            yield NoPlan(entry.name, f"there is no prior for {entry.parsed.text.strip()}; give --pilot")
            continue
        clusters = max(2, round(prior.clusters * (items or priors.items) / priors.items))
        drawn = answers.get(profile, next(iter(answers.values())))
        design = Design(2, clusters, drawn)
        costs = Costs(priors.training_hours, priors.evaluation_hours / prior.clusters, _runs(entry))
        source = f"prior, not this suite: {priors.source}"
        text = fill(entry.text, ClaimScope(task="a task"))
        yield Planning(entry.name, text, entry.unit, prior.components(drawn), design, costs, source)


def _from_pilot(entry: ClaimEntry, place: ClaimScope, profile: str, evidence: Evidence) -> Planning | NoPlan:
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
    table = crossed_table(effect)
    if table is None or min(table.shape) < 2:
        components = Components(float(np.var(effect.values, ddof=1)), 0.0, 0.0)
        design = Design(len(effect.by_seed), WITHOUT_ITEMS)
        costs = _costs(involved, design, _runs(entry))
        return Planning(name, text, entry.unit, components, design, costs, "pilot", items=False)
    variance, answers = _answer_variance(entry, place, methods)
    components = estimate_components(table, variance, answers)
    design = Design(table.shape[0], table.shape[1], answers)
    return Planning(name, text, entry.unit, components, design, _costs(involved, design, _runs(entry)), "pilot")


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
    named: Mapping[str, Any] = {"one": place.start, "other": place.other, "": place.start}
    return (method.first.adapter, method.first.start) == (metric.adapter, named.get(metric.start, metric.start))


def _runs(entry: ClaimEntry) -> int:
    """Return how many runs a seed takes."""
    return len({(metric.adapter, metric.start) for metric in entry.parsed.metrics})


def _costs(methods: Sequence[Method], design: Design, runs: int) -> Costs:
    """Return the pilot's mean hours per run; evaluation hours are divided by the effect's items and answers."""
    seconds = [run.seconds for method in methods for run in method.frames.runs]
    known = [each for each in seconds if not math.isnan(each["total"])]
    if not known:
        return Costs(math.nan, math.nan, runs)
    evaluation = float(np.mean([each["evaluate"] for each in known])) / 3600
    training = float(np.mean([each["total"] for each in known])) / 3600 - evaluation
    return Costs(max(training, 0.0), evaluation / (design.clusters * design.answers), runs)
