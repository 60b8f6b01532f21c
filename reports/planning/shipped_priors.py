"""Plan claims without a pilot: variances that were measured on a shipped suite, and called priors wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from pydantic import Field

from harness.config.base import Strict
from harness.config.read_yaml import read_yaml
from harness.stats.design import Components, Costs, Design
from reports.claims.claim_file import ClaimEntry
from reports.claims.evidence import fill
from reports.planning.pilot import NoPlan, PlanningBasis, ProfiledClaim
from reports.planning.planned_runs import PlannedRuns

PRIORS = Path(__file__).parent / "priors.yaml"


class Prior(Strict):
    """One figure's paired difference: standard deviations by source, in points, and the number of clusters measured."""

    clusters: int = Field(gt=0)
    seeds: float = Field(ge=0)
    items: float = Field(ge=0)
    seed_by_item: float = Field(ge=0)
    answer: float = Field(default=0.0, ge=0)

    def components(self, answers: int) -> Components:
        """Return the variances of scores in 0..1; with one answer per item, its variance is part of `seed_by_item`."""
        answer = self.answer if answers > 1 else 0.0
        return Components(*((value / 100) ** 2 for value in (self.seeds, self.items, self.seed_by_item, answer)))

    def sized(self, items: int | None, measured: int) -> int:
        """Return the clusters of a suite with `items` items of each task (None: as measured), not fewer than two."""
        return max(2, round(self.clusters * (items or measured) / measured))


class PriorTable(Strict):
    """Variances by figure, measured in one way; `items` is the number of items of each task, `seeds` that of the seeds."""

    source: str
    training_hours: float = Field(gt=0, description="of one run, evaluation aside")
    evaluation_hours: float = Field(gt=0, description="of one run, one answer of each item")
    items: int = Field(gt=0)
    seeds: int = Field(gt=1)
    figures: dict[str, Prior]


class Priors(PriorTable):
    """The shipped priors: of scores after the stages, and of retention at equal learning.

    The figures of `equal_learning` are means over stages; `<figure>, stage <n>` is of one stage. Those of `from_checkpoint`
    are of one stage that all methods begin at one checkpoint.
    """

    equal_learning: PriorTable
    from_checkpoint: PriorTable


@cache
def read_priors() -> Priors:
    """Return the shipped priors."""
    return Priors.model_validate(read_yaml(PRIORS))


def plan_from_priors(claims: Sequence[ProfiledClaim], runs: PlannedRuns) -> Iterator[PlanningBasis | NoPlan]:
    """Yield a planning basis for each claim from the shipped priors, at the claim's first start and task.

    A claim that the runs cannot test, whatever their number, is not planned, and the reason says what to set.
    """
    for entry, profile in claims:
        place = runs.place(entry)
        obstacle = runs.obstacle(entry, place, profile)
        if place is None or obstacle:
            yield NoPlan(entry.name, obstacle, judged=False)
            continue
        table, name = _table(entry)
        prior = table.figures.get(name)
        if prior is None:
            yield NoPlan(entry.name, f"there is no prior for {entry.parsed.text.strip()}; give --pilot")
            continue
        evaluation = runs.own_runs(entry, entry.parsed.metrics[0], place)[0].suite.evaluation
        curves = entry.at == "equal_learning"
        items = min(evaluation.curve_items, evaluation.limit or evaluation.curve_items) if curves else evaluation.limit
        drawn = evaluation.all_profiles.get(profile) or next(iter(evaluation.all_profiles.values()))
        design = Design(table.seeds, prior.sized(items, table.items), evaluation.curve_answers if curves else drawn.n)
        yield PlanningBasis(
            entry.name,
            fill(entry.text, place),
            entry.unit,
            prior.components(design.answers),
            design,
            Costs(table.training_hours, table.evaluation_hours / prior.clusters, runs.runs_per_seed(entry, place)),
            f"prior, not this suite: {table.source}",
            margin=entry.margin or 0.0,
            smallest_effect=entry.smallest_effect,
            seeds=runs.seeds(entry, place),
            best_rate=entry.scope.rate == "best",
        )


def _table(entry: ClaimEntry) -> tuple[PriorTable, str]:
    """Return where a claim's prior is, and its name there; empty for a claim that is not one figure of two methods."""
    metrics, priors = entry.parsed.metrics, read_priors()
    figures = dict.fromkeys(metric.name for metric in metrics)
    name = next(iter(figures)) if len(figures) == 1 and len(metrics) == 2 else ""
    if entry.at == "equal_learning" and entry.scope.stage == "branch":
        return priors.from_checkpoint, name
    if name and entry.scope.stage is not None:
        name = f"{name}, stage {entry.scope.stage}"
    return (priors.equal_learning if entry.at == "equal_learning" else priors), name
