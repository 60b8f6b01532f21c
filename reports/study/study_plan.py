"""How a study is laid out, before its runs exist: starts, learning rates, and the runs that its claims will be judged on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from harness.errors import RunError
from harness.pipeline.sweeps.study_runs import Plan
from reports.planning.planned_runs import PlannedRuns, is_branch, rate_of

RATE = "training.optimizer.lr"
STARTS = {"student.strength", "student.start"}  # the keys that choose the start of a student
CURVES = {
    "evaluation.every",
    "evaluation.curve_items",
    "evaluation.curve_profile",
    "evaluation.curve_answers",
}  # these settings change a run's learning curves and nothing else


class Config(NamedTuple):
    """A group of runs that differ only in their seed."""

    suite: str
    adapter: str
    order: str = "default"


@dataclass(frozen=True)
class StudyLayout:
    """The starts of a study's plan, and at each the learning rates of every entry."""

    plan: Plan

    @cached_property
    def starts(self) -> list[str]:
        """The students' starts, the suite's own first."""
        return list(dict.fromkeys([self.plan.base.student.start_name, *(start for start, *_ in self._suites)]))

    @cached_property
    def own_suite(self) -> str:
        """The name of the unchanged suite: the base's, or that of a factor that sets only learning curves."""
        names = [
            point.spec.suite.name
            for point in self.plan.points
            if (factor := self.plan.study.factors[point.factor]).key is None and {*factor.fixed} <= CURVES
        ]
        return self.plan.base.name if self.plan.base.name in names or not names else names[0]

    @property
    def first_task(self) -> str:
        """The task of the first stage that the methods train, whose learning and retention claims are judged."""
        return self.plan.base.first_own_stage.trains[0]

    def rates(self, start: str, adapter: str) -> dict[float, Config]:
        """Return an adapter's runs from a start by learning rate, lowest first; only runs that vary nothing else."""
        found = {
            lr: Config(suite, name) for (at, lr, name), suite in self._suites.items() if (at, name) == (start, adapter)
        }
        return dict(sorted(found.items()))

    def own(self, start: str, adapter: str) -> Config:
        """Return an adapter's runs from a start at the suite's own learning rate; a `Config` without runs if none exist."""
        return self.rates(start, adapter).get(self.rate(adapter), Config("", adapter))

    def rate(self, adapter: str) -> float:
        """Return the learning rate that the suite gives an adapter."""
        return rate_of(self.plan.base, adapter)

    @property
    def all_contrasts(self) -> list[tuple[str, str]]:
        """The contrasts of the study, and those of the factors that vary entries, each once."""
        study = self.plan.study
        factors = [factor for factor in study.factors.values() if factor.of_entries]
        return list(dict.fromkeys(pair for each in (None, *factors) for pair in study.contrasts_of(each)))

    @cached_property
    def _suites(self) -> dict[tuple[str, float, str], str]:
        """Suites by start, learning rate and adapter; raises `RunError` where two suites share all three."""
        found: dict[tuple[str, float, str], str] = {}
        for point in self.plan.points:
            suite, entry, factor = point.spec.suite, point.spec.entry, self.plan.study.factors[point.factor]
            settings = {factor.key, *factor.fixed} - {None}
            if suite.name not in (self.plan.base.name, self.own_suite) and not settings <= {RATE, *STARTS, *CURVES}:
                continue
            place = (suite.student.start_name, rate_of(suite, entry), entry)
            if found.setdefault(place, suite.name) != suite.name:
                raise RunError(
                    f"{found[place]} and {suite.name} both train {entry} from start {place[0]!r} at learning rate "
                    f"{place[1]:g}; leave one of them out of the study"
                )
        return found


def planned_runs_of(plan: Plan) -> PlannedRuns:
    """Return the runs that the study's claims are judged on, see `study_verdicts.judge_study`."""
    layout = StudyLayout(plan)
    entries = dict.fromkeys(spec.entry for spec in plan.specs)
    configs = {
        (config.suite, entry)
        for start in layout.starts
        for entry in entries
        for config in layout.rates(start, entry).values()
    }
    specs = [spec for spec in plan.specs if (spec.suite.name, spec.entry) in configs]
    branches = {spec.path: spec for point in plan.points if is_branch(spec := point.spec)}
    return PlannedRuns(plan.base, specs, list(branches.values()))
