"""Runs that are planned and do not exist yet: which claims they cannot be judged on, and with how many runs for each seed.

The reasons are those that `reports.claims.evidence` gives after the runs, with the setting that would help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.stats.score_matrix import Figure
from reports.claims.claim_file import ClaimEntry, claim_metrics
from reports.claims.evidence import ClaimScope
from reports.claims.grammar import Metric

ByRate = dict[float, list[RunSpec]]


@dataclass(frozen=True)
class PlannedRuns:
    """The runs of a suite or study that claims will be judged on; `base` is the unchanged suite."""

    base: Suite
    specs: Sequence[RunSpec]

    @cached_property
    def by_rate(self) -> dict[tuple[str, str], ByRate]:
        """The runs by start and adapter, then by learning rate."""
        found: dict[tuple[str, str], ByRate] = {}
        for spec in self.specs:
            rates = found.setdefault((spec.suite.student.start_name, spec.entry), {})
            rates.setdefault(rate_of(spec.suite, spec.entry), []).append(spec)
        return found

    @cached_property
    def starts(self) -> list[str]:
        """The starts, the suite's own first."""
        return list(dict.fromkeys([self.base.student.start_name, *(start for start, _ in self.by_rate)]))

    def place(self, entry: ClaimEntry) -> ClaimScope | None:
        """Return where a claim is planned: at its first start and task; None where the runs lack the starts it needs."""
        task = entry.scope.tasks[0] if entry.scope.tasks else ""
        task = self.base.stages[0].task if task in ("first", "each") else task
        if entry.scope.start == "pairs":
            return ClaimScope(*self.starts[:2], task) if len(self.starts) > 1 else None
        named = self.starts[0] if entry.scope.start == "each" else entry.scope.start
        return ClaimScope(named, "", task) if named in self.starts else None

    def obstacle(self, entry: ClaimEntry, place: ClaimScope | None, profile: str) -> str:
        """Say why the runs cannot test a claim, and what to set; empty where they can."""
        if place is None:
            return (
                f"the runs have the start {' and '.join(self.starts) or 'without a name'}, and the claim needs others"
            )
        sides = {metric: self.own_runs(metric, place) for metric in entry.parsed.metrics}
        if missing := [metric for metric, runs in sides.items() if not runs]:
            start = place.start_of(missing[0])
            return f"no runs of {missing[0].adapter}{f' from the {start} start' if start else ''}"
        runs = [run for found in sides.values() for run in found]
        if entry.scope.stage == "branch" and not all(run.stages[0].shared for run in runs):
            return (
                "no stage that the methods begin at one trained checkpoint; give the first stage an adapter of its own"
            )
        scored = entry.at == "equal_learning" or any(isinstance(claim_metrics()[each.name], Figure) for each in sides)
        for run in runs:
            known = list(run.suite.evaluation.all_profiles)
            if scored and profile and profile not in known:
                return f"no evaluation under profile {profile}; the suite has {', '.join(known)}"
            if entry.at == "equal_learning" and run.suite.evaluation.every is None:
                return "no learning curves; set evaluation.every"
            if entry.at == "equal_learning" and profile and profile != known[0]:
                return f"learning curves are made under the profile {known[0]}"
        if entry.scope.rate == "best" and (single := [m for m in sides if len(self._rates(m, place)) < 2]):
            return f"one learning rate of {single[0].adapter}; a study varies training.optimizer.lr"
        return ""

    def own_runs(self, metric: Metric, place: ClaimScope) -> list[RunSpec]:
        """Return the runs of a metric's adapter at the suite's own learning rate."""
        return self._rates(metric, place).get(rate_of(self.base, metric.adapter), [])

    def seeds(self, entry: ClaimEntry, place: ClaimScope) -> int:
        """Return how many seeds all methods of a claim have."""
        seeds = [{run.seed for run in self.own_runs(metric, place)} for metric in entry.parsed.metrics]
        return len(set.intersection(*seeds))

    def runs_per_seed(self, entry: ClaimEntry, place: ClaimScope | None) -> int:
        """Return how many runs a seed takes: one for each adapter and start, and where the best rate counts for each rate."""
        sides = {(metric.adapter, metric.start): metric for metric in entry.parsed.metrics}
        if entry.scope.rate == "own" or place is None:
            return len(sides)
        return sum(len(self._rates(metric, place)) for metric in sides.values())

    def _rates(self, metric: Metric, place: ClaimScope) -> ByRate:
        return self.by_rate.get((place.start_of(metric), metric.adapter), {})


def rate_of(suite: Suite, entry: str) -> float:
    """Return the learning rate of an adapter in a suite's first stage; nan for one that the suite lacks."""
    return suite.training_for(suite.stages[0], entry).optimizer.lr if entry in suite.adapters else float("nan")
