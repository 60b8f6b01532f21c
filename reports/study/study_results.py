"""The finished runs of a study: every run's figures, joined to the points of the plan that the run belongs to.

A run that is missing or unfinished is named and left out. Differences are paired over the seeds that both sides have, with an
interval for another seed and other items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.run_spec import RunSpec
from harness.config.study_file import Factor
from harness.errors import RunError
from harness.pipeline.sweeps.study_runs import Plan, Point
from harness.rundir.reader import RunDir
from harness.rundir.store import RunStore
from harness.stats.continual import BACKWARD, FIGURES, INTRANSIGENCE, LEARNING
from harness.stats.estimates import Estimate
from harness.stats.intervals import Interval, t_interval
from harness.stats.two_way import two_way_interval, unpaired_interval
from reports.data.frames import Frames, load_frames
from reports.data.methods import Method, different_starts
from reports.data.tables import figures_by_seed, score_matrices
from reports.planning.planned_runs import rate_of
from reports.study.study_plan import STARTS, Config, StudyLayout

RUN = ["suite", "adapter", "order", "seed"]
OF_FIRST_TASK = {"first_learned": LEARNING, "first_retained": BACKWARD}
UNITS = {  # of the figures that are not in FIGURES
    **{"first_learned": "%", "first_retained": "points", "entropy": "nats", "entropy_last": "nats"},
    **dict.fromkeys(["routed_share", "truncated_share", "fkl_gradient_share"], "%"),
    **dict.fromkeys(["pull_up", "pull_down", "pull_ratio"], "number"),  # a pull away from the first choice is negative
}


@dataclass(frozen=True)
class Results:
    """The finished runs of a plan; `missing` holds a sentence for each thing that is left out.

    `command` makes the missing runs and then the page.
    """

    plan: Plan
    frames: Frames
    missing: tuple[str, ...]
    command: str = ""

    @cached_property
    def layout(self) -> StudyLayout:
        """The starts and learning rates of the study."""
        return StudyLayout(self.plan)

    @cached_property
    def values(self) -> pd.DataFrame:
        """One row per run (indexed by RUN), one column per figure; shares in [0, 1], entropy in nats."""
        figures = figures_by_seed(self.frames.scores).pivot(index=RUN, columns="figure", values="value")
        first = pd.DataFrame(self._first_task()).set_index(RUN)
        steps = self.frames.own_steps
        own = ~steps["adapter"].isin(self.off_policy)
        steps = steps.assign(**{column: steps[column].where(own) for column in ("entropy", "truncated_share")})
        return figures.join(first).join(_training_figures(steps)).sort_index()

    @cached_property
    def controls(self) -> set[str]:
        """Entries that train nothing."""
        return {run.adapter for run in self.frames.runs if run.manifest.control}

    @cached_property
    def off_policy(self) -> list[str]:
        """Adapters that train on references, all or in part: their entropy and truncation are not of the student's answers."""
        manifests = (run.manifest for run in self.frames.runs)
        return list(dict.fromkeys(m.adapter for m in manifests if not (m.control or m.on_policy)))

    @cached_property
    def points(self) -> pd.DataFrame:
        """One row per finished point of the plan: factor, setting, start, learning rate and RUN."""
        rows = [_row(point, self.plan.study.factors[point.factor]) for point in self.plan.points]
        finished = set(self.values.index)
        return pd.DataFrame([row for row in rows if tuple(row[key] for key in RUN) in finished])

    @cached_property
    def methods(self) -> list[str]:
        """The entries that have finished runs, in the study's order."""
        return list(dict.fromkeys(self.points["adapter"]))

    @cached_property
    def configs(self) -> dict[Config, str]:
        """Every configuration with its difference from the unchanged suite: a factor's setting, or empty."""
        titles = {name: factor.title for name, factor in self.plan.study.factors.items()}
        found: dict[Config, str] = {}
        for row in self.points.to_dict("records"):
            config = Config(row["suite"], row["adapter"], row["order"])
            own = config == Config(self.layout.own_suite, config.adapter)
            found.setdefault(config, "" if own else f"{titles[row['factor']]}: {row['setting']}")
        return found

    @property
    def profile(self) -> str:
        """The evaluation profile of the page's tables: the suite's first one; empty where no run names its profiles."""
        named = [run.manifest.profile_names[0] for run in self.frames.runs if run.manifest.profiles]
        return named[0] if named else ""

    def titled(self, title: str) -> str:
        """Return a table's title with the profile that its scores are of."""
        return f"{title} ({self.profile} decoding)" if self.profile else title

    def in_factor(self, factor: Factor, entry: str) -> Config:
        """Return an entry's runs under a factor, with the factor's first value; a `Config` without runs if none exist."""
        name = next(name for name, each in self.plan.study.factors.items() if each == factor)
        rows = self.points[(self.points["factor"] == name) & (self.points["adapter"] == entry)]
        found = [Config(row["suite"], row["adapter"], row["order"]) for row in rows.to_dict("records")]
        return found[0] if found else Config("", entry)

    def series(self, config: Config, figure: str) -> pd.Series:
        """Return a figure by seed, nan where it is not defined; empty where the study has no such run."""
        by_seed = self.by_seed(config, figure)
        return pd.Series(list(by_seed.values()), index=list(by_seed), dtype=float)

    def by_seed(self, config: Config, figure: str) -> dict[int, float]:
        """Return a figure by seed as a mapping; nan where it is not defined, empty where the study has no such run."""
        runs = {key[3]: key for key in self.values.index if key[:3] == config}
        column: Any = self.values.get(figure, {})
        return {seed: float(column.get(key, "nan")) for seed, key in runs.items()}

    def mean(self, config: Config, figure: str, seeds: Collection[int] | None = None) -> Interval:
        """Return a figure's mean and 95 % t interval over seeds; `seeds` limits it to some."""
        values = self.series(config, figure)
        found = t_interval(values if seeds is None else values[values.index.isin(list(seeds))])
        return found.of_unit(unit_of(figure))

    def method(self, config: Config) -> Method | None:
        """Return the runs of a configuration; None where the study has none."""
        return self._methods.get(config)

    def estimate(self, config: Config, figure: str) -> Estimate:
        """Return a figure by seed, and by item where answers were kept and the figure is made of scores."""
        task = self.layout.first_task if figure in OF_FIRST_TASK else ""
        known = OF_FIRST_TASK.get(figure) or (FIGURES.get(figure) if figure != INTRANSIGENCE.name else None)
        method = self.method(config)
        if known is None or method is None:
            return Estimate(self.by_seed(config, figure)).finite()
        return method.estimate(known, task)

    def paired(self, one: Config, other: Config, figure: str, seeds: Collection[int] | None = None) -> Interval:
        """Return the mean of `one - other` over the seeds that both have, or some of them, with its 95 % interval.

        The interval is for another seed and other items, over seeds alone where answers were not kept. Configurations that
        start from other weights are not paired by seed.
        """
        sides = [self.estimate(config, figure) for config in (one, other)]
        if seeds is not None:
            sides = [side.of_seeds([seed for seed in side.seeds if seed in seeds]) for side in sides]
        methods = self.method(one), self.method(other)
        if methods[0] and methods[1] and different_starts(methods[0], methods[1]):
            found = unpaired_interval(sides[1], sides[0])
        else:
            found = two_way_interval((sides[0] - sides[1]).finite())
        return found.of_difference(unit_of(figure))

    @cached_property
    def branches(self) -> list[Method]:
        """The methods of factors whose suite begins with fixed stages; from each start, those of the first such factor."""
        suites: dict[str, str] = {}
        found: dict[Config, Method] = {}
        for point in self.plan.points:
            spec, stages = point.spec, point.spec.stages
            fixed_first = stages[0].shared and not stages[-1].shared
            if not fixed_first or self.plan.study.factors[point.factor].key not in {None, *STARTS}:
                continue
            config = Config(spec.suite.name, spec.entry, spec.order)
            method = self.method(config)
            if method is not None and suites.setdefault(spec.suite.student.start_name, config.suite) == config.suite:
                found[config] = method
        return list(found.values())

    def swept(self, name: str) -> dict[str, dict[float, Config]]:
        """Return a factor's runs by entry and value, lowest first; only entries with at least three numeric values."""
        rows = self.points[self.points["factor"] == name]
        values = self.plan.study.factors[name].values
        if not values or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return {}
        found: dict[str, dict[float, Config]] = {}
        for row in rows.to_dict("records"):
            config = Config(row["suite"], row["adapter"], row["order"])
            found.setdefault(row["adapter"], {})[float(row["setting"])] = config
        return {entry: dict(sorted(by_value.items())) for entry, by_value in found.items() if len(by_value) > 2}

    def steps_of(self, configs: Collection[Config]) -> pd.DataFrame:
        """Return the training steps of some configurations."""
        steps = self.frames.steps
        return steps[pd.MultiIndex.from_frame(steps[[*Config._fields]]).isin(list(configs))]

    @cached_property
    def _methods(self) -> dict[Config, Method]:
        runs: dict[Config, list[RunDir]] = {}
        for run in self.frames.runs:
            runs.setdefault(Config(run.suite, run.adapter, run.order), []).append(run)
        return {
            config: Method(config.adapter, replace(self.frames, runs=tuple(found))) for config, found in runs.items()
        }

    def _first_task(self) -> Iterator[dict[str, Any]]:
        for identity, matrix in score_matrices(self.frames.scores):
            run = {key: identity[key] for key in RUN}
            learned, kept = (figure.value(matrix, self.layout.first_task) for figure in (LEARNING, BACKWARD))
            yield {**run, "first_learned": learned, "first_retained": kept}


def collect(plan: Plan, command: str = "") -> Results:
    """Read the finished runs of a plan; raises `RunError` where there is none, or where they are not comparable."""
    left = {spec.path for spec in plan.todo}
    done = [spec for spec in plan.specs if spec.path not in left]
    if not done:
        raise RunError(f"study {plan.study.name} has no finished run; `harness study {plan.study.name}` makes them")
    missing = _absences([spec for spec in plan.specs if spec.path in left])
    return Results(plan, load_frames([spec.path for spec in done]), missing, command)


def unit_of(figure: str) -> str:
    """Return the unit of a column of `Results.values` (a figure, or `figure:task`), which sets the bounds of its intervals."""
    name = figure.partition(":")[0]
    return FIGURES[name].unit if name in FIGURES else UNITS[name]


def _row(point: Point, factor: Factor) -> dict[str, Any]:
    spec = point.spec
    run = {"suite": spec.suite.name, "adapter": spec.entry, "order": spec.order, "seed": spec.seed}
    place = {"factor": point.factor, "setting": _setting(point, factor)}
    return {**place, "start": spec.suite.student.start_name, "learning_rate": rate_of(spec.suite, spec.entry), **run}


def _setting(point: Point, factor: Factor) -> str:
    """Return a factor's setting at a point: its value, or the order of the stages; empty where it has neither."""
    if factor.key is None:
        return point.spec.order if len(factor.orders) > 1 else ""
    return f"{point.value:g}" if isinstance(point.value, int | float) else str(point.value)


def _training_figures(steps: pd.DataFrame) -> pd.DataFrame:
    """Return per run the means over all steps, the entropy's mean over the last stage, and pull down / pull up."""
    last = steps[steps["stage"] == steps.groupby(RUN)["stage"].transform("max")]
    columns = ["entropy", "routed_fkl", "truncated_share", "pull_up", "pull_down", "fkl_gradient_share"]
    whole = steps.groupby(RUN)[columns].mean().rename(columns={"routed_fkl": "routed_share"})
    ratio = whole["pull_down"] / whole["pull_up"].where(whole["pull_up"] > 0)
    return whole.assign(entropy_last=last.groupby(RUN)["entropy"].mean(), pull_ratio=ratio)


def has_own_stages(factor: Factor) -> bool:
    """Return whether a factor's runs have different stages, so that only runs of the factor are compared with each other."""
    return any(key.split(".")[0] == "stages" for key in factor.fixed)


def _absences(specs: Collection[RunSpec]) -> tuple[str, ...]:
    """Return a sentence per folder and reason on the seeds whose runs are left out."""
    seeds: dict[tuple[Path, str], list[RunSpec]] = {}
    for spec in specs:
        manifest, why = RunStore(spec.path).manifest, "not started"
        if manifest is not None:
            why = "made with a different configuration" if manifest.finished else "not finished"
        seeds.setdefault((spec.path.parent, why), []).append(spec)
    return tuple(
        f"{folder}: {why}: seeds {', '.join(str(spec.seed) for spec in same)}"
        if len(same) > 1
        else f"{same[0].path}: {why}"
        for (folder, why), same in seeds.items()
    )
