"""Runs that are planned and do not exist yet: which claims they cannot be judged on, and with how many runs for each seed.

The reasons are those that `reports.claims.evidence` gives after the runs, with the setting that would help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.stats.looks import FEWEST_SEEDS
from harness.stats.score_matrix import Figure
from reports.claims.claim_file import ClaimEntry, claim_metrics
from reports.claims.evidence import ClaimScope
from reports.claims.grammar import Metric
from reports.formatting import format_count

BRANCH = "that begin a stage at a trained checkpoint of all methods; give the first stage an adapter, or use --from"


@dataclass(frozen=True)
class PlannedRuns:
    """The runs of a suite or study that claims will be judged on; `base` is the unchanged suite.

    `branches` are further runs that begin a stage at a common checkpoint; only a study has them.
    """

    base: Suite
    specs: Sequence[RunSpec]
    branches: Sequence[RunSpec] = ()

    @cached_property
    def starts(self) -> list[str]:
        """The starts, the suite's own first."""
        named = (spec.suite.student.start_name for spec in (*self.specs, *self.branches))
        return list(dict.fromkeys([self.base.student.start_name, *named]))

    def place(self, entry: ClaimEntry) -> ClaimScope | None:
        """Return where a claim is planned: at its first start and task; None where the runs lack the starts it needs."""
        task = entry.scope.tasks[0] if entry.scope.tasks else ""
        task = self.base.first_own_stage.task if task in ("first", "each") else task
        if entry.scope.start == "pairs":
            return ClaimScope(self.starts[0], self.starts[1], task) if len(self.starts) > 1 else None
        named = self.starts[0] if entry.scope.start == "each" else entry.scope.start
        return ClaimScope(named, "", task) if named in self.starts else None

    def obstacle(self, entry: ClaimEntry, place: ClaimScope | None, profile: str) -> str:
        """Say why the runs cannot test a claim, and what to set; empty where they can."""
        if place is None:
            return (
                f"the runs have the start {' and '.join(self.starts) or 'without a name'}, and the claim needs others"
            )
        sides = {metric: self.own_runs(entry, metric, place) for metric in entry.parsed.metrics}
        if missing := [metric for metric, runs in sides.items() if not runs]:
            start = place.start_of(missing[0])
            at = f" {BRANCH}" if entry.scope.stage == "branch" else ""
            return f"no runs of {missing[0].adapter}{f' from the {start} start' if start else ''}{at}"
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
            if (
                entry.at == "equal_learning"
                and profile
                and profile != (drawn := run.suite.evaluation.profile_of_curves)
            ):
                return f"learning curves are made under the profile {drawn}; set evaluation.curve_profile"
        if entry.scope.rate == "best" and (single := [m for m in sides if len(self._rates(entry, m, place)) < 2]):
            return f"one learning rate of {single[0].adapter}; a study varies training.optimizer.lr"
        if entry.scope.rate == "best" and (seeds := self.seeds(entry, place)) < FEWEST_SEEDS:
            return (
                f"{format_count(seeds, 'seed')} with runs at all learning rates, and a verdict needs {FEWEST_SEEDS}; give the "
                "study's learning rates more seeds"
            )
        return ""

    def own_runs(self, entry: ClaimEntry, metric: Metric, place: ClaimScope) -> list[RunSpec]:
        """Return the runs of a claim's metric at the suite's own learning rate, or in a branch at the branch's."""
        rates = self._rates(entry, metric, place)
        if entry.scope.stage == "branch":
            return next(iter(rates.values()), [])
        return rates.get(rate_of(self.base, metric.adapter), [])

    def seeds(self, entry: ClaimEntry, place: ClaimScope) -> int:
        """Return how many seeds all methods of a claim have; at the best learning rate, with runs at all rates."""
        best = entry.scope.rate == "best"
        groups = [
            runs
            for metric in entry.parsed.metrics
            for runs in (self._rates(entry, metric, place).values() if best else [self.own_runs(entry, metric, place)])
        ]
        return len(set.intersection(*({run.seed for run in runs} for runs in groups)))

    def runs_per_seed(self, entry: ClaimEntry, place: ClaimScope | None) -> int:
        """Return how many runs a seed takes: one for each adapter and start, and where the best rate counts for each rate."""
        sides = {(metric.adapter, metric.start): metric for metric in entry.parsed.metrics}
        if entry.scope.rate == "own" or place is None:
            return len(sides)
        return sum(len(self._rates(entry, metric, place)) for metric in sides.values())

    def _rates(self, entry: ClaimEntry, metric: Metric, place: ClaimScope) -> dict[float, list[RunSpec]]:
        """Return the runs of a metric's adapter and start by learning rate."""
        specs, wanted = self.specs, (place.start_of(metric), metric.adapter)
        if entry.scope.stage == "branch":
            specs = [spec for spec in specs if is_branch(spec)] or self.branches
        found: dict[float, list[RunSpec]] = {}
        for spec in specs:
            if (spec.suite.student.start_name, spec.entry) == wanted:
                found.setdefault(rate_of(spec.suite, spec.entry), []).append(spec)
        return found


def is_branch(spec: RunSpec) -> bool:
    """Whether a run's method begins at a checkpoint that another run or a fixed stage trained for all methods."""
    before = spec.stages[0].shared or bool(spec.suite.origin and spec.suite.origin.trained)
    return before and not spec.stages[-1].shared


def rate_of(suite: Suite, entry: str) -> float:
    """Return the learning rate of an adapter in the first stage that it trains; nan for one that the suite lacks."""
    return suite.training_for(suite.first_own_stage, entry).optimizer.lr if entry in suite.adapters else float("nan")
