"""Plan a study: many runs of one suite that vary one factor at a time, from a short YAML file.

Points whose configurations differ only in the suite's name are one run. So the base run is trained once for all factors, an
adapter that a factor's key does not affect is not trained again, and finished runs of a sweep are used as they are.
`reports.study.build_study` writes the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from harness.config.base import digest
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.study_file import Factor, Study, load_study
from harness.config.suite import Suite
from harness.errors import ConfigError
from harness.rundir.store import RunStore, is_finished

MOST_RUNS = 400


@dataclass(frozen=True)
class Point:
    """A run under one factor and value of a study; a base run has a point for every factor with the suite's own value."""

    factor: str
    value: Any
    spec: RunSpec


@dataclass(frozen=True)
class Plan:
    """A study's points in the order of its factors, the suite that they vary, and the arguments of the command."""

    study: Study
    base: Suite
    points: tuple[Point, ...]
    name: str
    overrides: tuple[str, ...] = ()
    out: Path = Path("runs")

    @cached_property
    def specs(self) -> list[RunSpec]:
        """The distinct runs, seed by seed, so that a study that is stopped has whole comparisons."""
        distinct = {point.spec.path: point.spec for point in self.points}
        return sorted(distinct.values(), key=lambda spec: spec.seed)

    @property
    def page(self) -> Path:
        """The file of the page where the command names none."""
        # Its figures are in a folder of this name, apart from a suite's runs.
        return self.out / f"study-{self.study.name}.md"

    def command(self, page: Path) -> str:
        """Return the command that does the missing runs and writes the page to `page`."""
        words = ["harness", "study", self.name, "--out", str(self.out)]
        words += [word for override in self.overrides for word in ("--set", override)]
        return shlex.join([*words, *(["--page", str(page)] if page != self.page else [])])

    @property
    def todo(self) -> list[RunSpec]:
        """The runs that are not finished yet."""
        return [spec for spec in self.specs if not is_finished(spec)]

    def minutes(self, workers: int) -> float:
        """Return the estimated minutes until all runs are finished, from the times of finished runs where there are any."""
        each = list(_minutes(self.specs)) or [self.study.minutes_per_run]
        return len(self.todo) * sum(each) / len(each) / workers

    def cost(self, workers: int) -> str:
        """Return one sentence on the remaining work: runs, training steps, estimated minutes."""
        todo = self.todo
        steps = sum(stage.training.steps for spec in todo for stage in spec.stages)
        if not todo:
            return f"study {self.study.name}: all {len(self.specs)} runs are finished"
        return (
            f"study {self.study.name}: {len(todo)} of {len(self.specs)} runs are left, up to {steps:,} training steps, about "
            f"{self.minutes(workers):.0f} minutes with {workers} at a time, without the time to build models"
        )


def plan_study(name: str, overrides: Sequence[str] = (), out: Path = Path("runs")) -> Plan:
    """Return the plan of a study, found by name or path; `overrides` change its suite, runs go below `out`.

    Raises `ConfigError` for a file that cannot be read, an adapter or order that the suite lacks, values whose runs would
    share a folder, and more than `MOST_RUNS` runs.
    """
    study = load_study(name)
    base = _as_planned(load_suite(study.suite, overrides), study)
    plan = Plan(study, base, tuple(_points(study, base, overrides, out)), name, tuple(overrides), out)
    _check_paths(plan)
    if len(plan.specs) > MOST_RUNS:
        raise ConfigError(
            f"study {study.name} has {len(plan.specs)} runs, at most {MOST_RUNS} are allowed; drop values"
        )
    return plan


def _points(study: Study, base: Suite, overrides: Sequence[str], out: Path) -> Iterator[Point]:
    known: dict[str, RunSpec] = {}
    for name, factor in study.factors.items():
        for value in factor.values or (None,):
            suite = _varied(study, name, factor, value, base, overrides)
            combinations = product(factor.entries or study.entries, factor.orders, factor.seeds or study.seeds)
            for entry, order, seed in combinations:
                spec = RunSpec(suite, entry, seed, order, out)
                _check(spec, study)
                if _has(base, entry, order):
                    own = RunSpec(base, entry, seed, order, out)
                    known.setdefault(_kind(own), own)
                yield Point(name, value, known.setdefault(_kind(spec), spec))


def _has(suite: Suite, entry: str, order: str) -> bool:
    """Return whether a suite has an entry and an order, which a factor's `fixed` keys may add."""
    try:
        suite.ordered_stages(order)
    except ValueError:
        return False
    return entry in suite.adapters


def _varied(study: Study, name: str, factor: Factor, value: Any, base: Suite, overrides: Sequence[str]) -> Suite:
    """Return the suite with a factor's value, under a name made of suite, factor and value."""
    settings = {**factor.fixed, **({factor.key: value} if factor.key else {})}
    if not settings:
        return base
    suite = _as_planned(load_suite(study.suite, overrides, settings=settings), study)
    parts = [base.name, name, *([str(value)] if factor.key else [])]
    return suite.model_copy(update={"name": re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))})


def _as_planned(suite: Suite, study: Study) -> Suite:
    """Return a suite with the study's seeds and looks, which its runs record."""
    return suite.model_copy(update={"seeds": study.seeds, "looks": study.looks})


def _kind(spec: RunSpec) -> str:
    """Return the digest of a run's configuration without the suite's name; points with equal digests are one run."""
    return digest([spec.entry, spec.order, {**spec.config(), "name": None}])


def _check(spec: RunSpec, study: Study) -> None:
    if spec.entry not in spec.suite.adapters:
        known = ", ".join(spec.suite.adapters)
        raise ConfigError(f"study {study.name}: suite {study.suite} has no adapter {spec.entry!r}; it has {known}")
    try:
        _ = spec.stages
    except ValueError as error:
        raise ConfigError(f"study {study.name}: {error}") from error


def _check_paths(plan: Plan) -> None:
    """Refuse two values of a factor whose different runs would have the same folder name."""
    kinds: dict[Path, tuple[str, Any]] = {}
    for point in plan.points:
        kind, value = kinds.setdefault(point.spec.path, (_kind(point.spec), point.value))
        if kind != _kind(point.spec):
            raise ConfigError(
                f"study {plan.study.name}: factor {point.factor}'s value {point.value!r} and {value!r} would both run in "
                f"{point.spec.path}; rename the factor, or write the values so that their letters and digits differ"
            )


def _minutes(specs: Sequence[RunSpec]) -> Iterator[float]:
    """Yield the minutes that each finished run took, without its models, which are built once for all runs."""
    for spec in specs:
        manifest = RunStore(spec.path).manifest
        recorded = [s.seconds for s in manifest.sessions if s.seconds is not None] if manifest else []
        if manifest and manifest.finished and recorded:
            yield sum(seconds["total"] - seconds["models"] for seconds in recorded) / 60
