"""Measure a claim's effect, by seed and by item, on methods given by adapter, start and learning rate.

`measure_effect` returns the effect, or says why these runs cannot test the claim.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from harness.errors import ConfigError
from harness.rundir.reader import RunDir
from harness.stats.estimates import Estimate
from harness.stats.learning.rates import ChosenRate, choose_rates, widening
from harness.stats.score_matrix import Figure
from reports.claims.claim_file import ClaimEntry, claim_metrics, metrics_of_tasks
from reports.claims.grammar import Metric
from reports.data.calibration import CALIBRATION, ProfileFigure, calibration, uncalibrated_tasks
from reports.data.learning_curves import NO_CURVES, OBSTACLE, CurveFigure, at_equal_learning_of, probes_without_curve
from reports.data.methods import Method, different_starts
from reports.data.paired_cells import SeedPair, check_pairs, estimate_of

ByRate = Mapping[float, Method]


@dataclass(frozen=True)
class ClaimScope:
    """Where one row of a claim is judged: one or two starts, and a task. Each is empty where the claim names none."""

    start: str = ""
    other: str = ""
    task: str = ""

    def start_of(self, metric: Metric) -> str:
        """Return the start of a metric's runs: `one` and `other` are the two of a pair, none is the first."""
        return {"one": self.start, "other": self.other, "": self.start}.get(metric.start, metric.start)


@dataclass(frozen=True)
class Evidence:
    """The methods that claims are judged on, each adapter at its own learning rate.

    `by_rate[start, adapter]` holds the methods by learning rate, the adapter's own included; only a study has several.
    `branches` are further methods that begin at a common checkpoint, see `Method.branch_stage`; only a study has them.
    What a study plans counts before its runs exist: `planned_starts`, of which the first one stays the primary one, and by
    start and adapter `planned`, the methods, `planned_rates`, their numbers of learning rates, and `planned_branches`.
    """

    methods: Sequence[Method]
    by_rate: Mapping[tuple[str, str], ByRate] = field(default_factory=dict[tuple[str, str], ByRate])
    branches: Sequence[Method] = ()
    planned_starts: Sequence[str] = ()
    planned: Collection[tuple[str, str]] = ()
    planned_rates: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    planned_branches: Collection[tuple[str, str]] = ()

    @property
    def runs(self) -> list[RunDir]:
        """The runs of all methods, each once, those of branches and of other learning rates included."""
        rates = [method for by_rate in self.by_rate.values() for method in by_rate.values()]
        found = {run.path: run for method in (*self.methods, *self.branches, *rates) for run in method.frames.runs}
        return list(found.values())

    @property
    def starts(self) -> list[str]:
        """The planned starts and those of the methods, in their order."""
        found = (method.first.start for method in (*self.methods, *self.branches))
        return list(dict.fromkeys([*self.planned_starts, *found]))

    @property
    def trained(self) -> list[str]:
        """The trained tasks, in the order of training."""
        return list(dict.fromkeys(task for method in (*self.methods, *self.branches) for task in method.stage_of))

    @property
    def first(self) -> list[str]:
        """The first task that the methods train themselves; stages with an adapter of their own are not their learning."""
        known = (*self.methods, *self.branches)
        own = [task for each in known for task in each.stage_of if task not in each.first.manifest.fixed_tasks]
        return own[:1] or self.trained[:1]

    @property
    def trained_before(self) -> list[str]:
        """The tasks that were trained before the branches begin; without branches, the first trained task."""
        before = [task for method in self._branched for task in method.first.manifest.trained_before]
        return list(dict.fromkeys(before)) or self.trained[:1]

    @property
    def _branched(self) -> Sequence[Method]:
        return [method for method in self.methods if method.branch_stage] or self.branches

    def method(self, entry: ClaimEntry, adapter: str, start: str) -> Method | None:
        """Return an adapter's runs from a start, None without any; raises `ConfigError` where several methods match."""
        all_of = self._branched if entry.scope.stage == "branch" else self.methods
        found = [each for each in all_of if (each.first.adapter, each.first.start) == (adapter, start)]
        if len(found) > 1:
            raise ConfigError(
                f"claim {entry.name}: {adapter} is {' and '.join(method.name for method in found)} here; name the methods of "
                "one suite and order"
            )
        return found[0] if found else None

    def awaits_runs(self, entry: ClaimEntry, adapter: str, start: str) -> bool:
        """Return whether a study plans runs of an adapter that the claim compares and that are not there yet."""
        place = (start, adapter)
        if entry.scope.rate == "best":
            return self.planned_rates.get(place, 0) > max(1, len(self.by_rate.get(place, {})))
        planned = self.planned_branches if entry.scope.stage == "branch" else self.planned
        return place in planned and self.method(entry, adapter, start) is None


@dataclass(frozen=True)
class MeasuredEffect:
    """An effect by seed and by item under one evaluation profile.

    `compared` tells a reader what was compared. The effect's intervals are to be `widening` times as wide as those of the
    estimate. `reason` says why the runs cannot test the claim; it is empty where they can. `unfinished` says that runs which
    are not there yet can change that.
    """

    estimate: Estimate
    profile: str = ""
    compared: str = ""
    reason: str = ""
    widening: float = 1.0
    unfinished: bool = False


NO_EFFECT = Estimate({})


def measure_effect(entry: ClaimEntry, place: ClaimScope, profile: str, evidence: Evidence) -> MeasuredEffect:
    """Return a claim's effect at one place, under a profile (empty: the suite's first, whatever the methods show)."""
    named = {metric: evidence.method(entry, metric.adapter, _start(metric, place)) for metric in entry.parsed.metrics}
    methods = {metric: method for metric, method in named.items() if method is not None}
    if missing := [metric for metric in named if metric not in methods]:
        where = " that begin a stage at a trained checkpoint of all methods" if entry.scope.stage == "branch" else ""
        unfinished = any(evidence.awaits_runs(entry, metric.adapter, _start(metric, place)) for metric in missing)
        return MeasuredEffect(
            NO_EFFECT, profile, reason=f"no runs of {_name(missing[0], place)}{where}", unfinished=unfinished
        )
    if apart := _other_weights(entry, methods):
        return MeasuredEffect(NO_EFFECT, profile, reason=apart)
    if not any(isinstance(claim_metrics()[metric.name], Figure | CurveFigure) for metric in methods):
        effect = _effect(entry, place, methods)
        reason = _no_profiles(methods) if not effect.by_seed else ""
        compared = [_compared(entry, place, methods.values(), evidence), _without(_uncalibrated(methods))]
        return MeasuredEffect(effect, compared=", ".join(filter(None, compared)), reason=reason)
    shown = {
        metric: found
        for metric, method in methods.items()
        if (found := method.under(profile or method.first.manifest.profile_names[0]))
    }
    if lacking := [metric.adapter for metric in methods if metric not in shown]:
        return MeasuredEffect(NO_EFFECT, profile, reason=f"{lacking[0]} was not evaluated under profile {profile}")
    profile = next(iter(shown.values())).profile
    if entry.scope.rate == "best":
        return _at_best_rates(entry, place, profile, evidence)
    if entry.at == "equal_learning":
        return _at_equal_learning(entry, place, profile, shown)
    _check_comparable(entry, place, shown)
    return MeasuredEffect(_effect(entry, place, shown), profile, _compared(entry, place, methods.values(), evidence))


def count_seeds(entry: ClaimEntry, place: ClaimScope, evidence: Evidence, measured: Estimate) -> int:
    """Return at how many seeds a claim can be looked at: those with an effect, or with a finished run of every method.

    At the best learning rate a seed needs the runs at all rates. A seed without an effect, such as one without common
    learning, counts: it does not move a look.
    """
    named = [(_start(metric, place), metric.adapter) for metric in entry.parsed.metrics]
    if entry.scope.rate == "best":
        methods = [method for place_of in named for method in evidence.by_rate.get(place_of, {}).values()]
    else:
        methods = [evidence.method(entry, adapter, start) for start, adapter in named]
    finished = [
        {run.seed for run in (method.frames.runs if method else []) if run.manifest.finished} for method in methods
    ]
    return len(set(measured.by_seed).union(set.intersection(*finished) if finished else ()))


def fill(text: str, place: ClaimScope) -> str:
    """Replace {task}, {one} and {other} in a text, by … where a place has none; any other braces stay as they are."""
    values = {"{task}": place.task, "{one}": place.start, "{other}": place.other}
    for name, value in values.items():
        text = text.replace(name, value or "…")
    return text


def _start(metric: Metric, place: ClaimScope) -> str:
    return place.start_of(metric)


def _name(metric: Metric, place: ClaimScope) -> str:
    start = _start(metric, place)
    return f"{metric.adapter} from the {start} start" if start else metric.adapter


def _task(metric: Metric, place: ClaimScope) -> str:
    return place.task if metric.name in metrics_of_tasks() else ""


def _effect(entry: ClaimEntry, place: ClaimScope, methods: Mapping[Metric, Method]) -> Estimate:
    stage = entry.scope.last
    return entry.parsed.effect(lambda metric: _estimate(metric, methods[metric], place, stage))


def _estimate(metric: Metric, method: Method, place: ClaimScope, stage: int | None) -> Estimate:
    figure = claim_metrics()[metric.name]
    if isinstance(figure, ProfileFigure):
        return calibration(method, stage)
    assert not isinstance(figure, CurveFigure)  # a claim compares it at equal learning alone
    return method.estimate(figure, _task(metric, place), stage)


def _no_profiles(methods: Mapping[Metric, Method]) -> str:
    """Say which method lacks the two profiles that calibration compares; empty where none does."""
    asked = {metric: each for metric, each in methods.items() if metric.name == CALIBRATION.name}
    lacking = [metric.adapter for metric, each in asked.items() if not calibration(each).by_seed]
    return f"{lacking[0]} was not evaluated both greedily and at temperature 1" if lacking else ""


def _uncalibrated(methods: Mapping[Metric, Method]) -> list[str]:
    asked = [method for metric, method in methods.items() if metric.name == CALIBRATION.name]
    return list(dict.fromkeys(task for method in asked for task in uncalibrated_tasks(method)))


def _without(tasks: Sequence[str]) -> str:
    """Name the tasks that an average leaves out; empty without any."""
    return f"without {', '.join(tasks)}" if tasks else ""


def _compared(entry: ClaimEntry, place: ClaimScope, methods: Iterable[Method], evidence: Evidence) -> str:
    """Return what is compared, and at which learning rates where a study has several."""
    rates = dict.fromkeys(
        rate
        for method in methods
        for rate, each in evidence.by_rate.get((method.first.start, method.first.adapter), {}).items()
        if each is method
    )
    return fill(entry.compared, place) + (f" at lr {' and '.join(f'{rate:g}' for rate in rates)}" if rates else "")


def _other_weights(entry: ClaimEntry, methods: Mapping[Metric, Method]) -> str:
    """Name two adapters that begin with different weights under one name at a seed; empty where there are none."""
    for one, other in combinations(methods.values(), 2):
        stage = (one.branch_stage or 1) if entry.scope.stage == "branch" else 1
        if stage > 1 and (seeds := different_starts(one, other, stage)):
            names = f"{one.first.adapter} and {other.first.adapter}"
            return f"{names} begin stage {stage} with different weights at seed {seeds[0]}"
        if one.first.start == other.first.start and (seeds := different_starts(one, other)):
            return f"{one.first.adapter} and {other.first.adapter} start from different weights at seed {seeds[0]}"
    return ""


def _check_comparable(entry: ClaimEntry, place: ClaimScope, methods: Mapping[Metric, Method]) -> None:
    """Raise `RunError` where the cells of two seeds or methods were made under different conditions."""
    figures = {metric: figure for metric in methods if isinstance(figure := claim_metrics()[metric.name], Figure)}
    sides = [
        (seed, side)
        for metric, figure in figures.items()
        for seed, side in methods[metric].sides(figure, _task(metric, place), entry.scope.last).items()
    ]
    check_pairs([SeedPair(seed, side, side) for seed, side in sides], shared_items=None)


def _at_best_rates(entry: ClaimEntry, place: ClaimScope, profile: str, evidence: Evidence) -> MeasuredEffect:
    """Compare each adapter at its best learning rate; a seed's rate is chosen on the other half of the seeds."""
    estimates: dict[Metric, Estimate] = {}
    choices: list[Mapping[int, ChosenRate]] = []
    parts: list[str] = []
    for metric in entry.parsed.metrics:
        rates = evidence.by_rate.get((_start(metric, place), metric.adapter), {})
        shown = {rate: found for rate, method in rates.items() if (found := method.under(profile))}
        if evidence.awaits_runs(entry, metric.adapter, _start(metric, place)):
            reason = f"{metric.adapter} has no run yet at some of its learning rates"
            return MeasuredEffect(NO_EFFECT, profile, reason=reason, unfinished=True)
        if len(shown) < 2:
            return MeasuredEffect(NO_EFFECT, profile, reason=f"{metric.adapter} ran at one learning rate")
        for method in shown.values():
            _check_comparable(entry, place, {metric: method})
        estimates[metric], chosen = _best(entry, metric, place, shown)
        choices.append(chosen)
        used = dict.fromkeys(each.rate for each in chosen.values())
        parts.append(f"{metric.adapter} {' or '.join(f'{rate:g}{name_edge(rate, list(shown))}' for rate in used)}")
    chosen_at = f"each at its best lr, chosen on the other half of the seeds ({'; '.join(parts)})"
    compared = ", ".join(filter(None, [fill(entry.compared, place), chosen_at]))
    effect = entry.parsed.effect(estimates.__getitem__)
    return MeasuredEffect(effect, profile, compared, widening=widening(choices))


def _at_equal_learning(
    entry: ClaimEntry, place: ClaimScope, profile: str, methods: Mapping[Metric, Method]
) -> MeasuredEffect:
    """Compare what two adapters kept of the probes, or of one task, at equal learning: in one stage, or on average.

    Only finished runs count: a mean over stages is of fewer stages while a run goes on.
    """
    one, other = methods
    if profile != (drawn := methods[one].first.manifest.curve_profile):
        return MeasuredEffect(NO_EFFECT, profile, reason=f"learning curves are made under the profile {drawn}")
    tasks = [task] if (task := _task(one, place)) else methods[one].first.probes if one.name == "probe_change" else None
    if tasks is not None and not tasks:
        return MeasuredEffect(NO_EFFECT, profile, reason="the suite has no probes")
    stage = methods[one].branch_stage if entry.scope.stage == "branch" else entry.scope.last
    ended = {metric: found for metric, method in methods.items() if (found := method.finished)}
    if running := [metric for metric in methods if metric not in ended]:
        return MeasuredEffect(
            NO_EFFECT, profile, reason=f"no finished run of {_name(running[0], place)}", unfinished=True
        )
    found = at_equal_learning_of(ended[other], ended[one], tasks, stage)
    if found is None or found.obstacle:
        return MeasuredEffect(
            NO_EFFECT, profile, reason=NO_CURVES if found is None else found.obstacle.removeprefix(OBSTACLE)
        )
    sides = {one: found.kept.other, other: found.kept.base}
    seeds = f"{len(found.kept.common)} of {found.kept.seeds} seeds have common learning"
    branch = _branch(methods[one]) if entry.scope.stage == "branch" else ""
    without = _without([] if _task(one, place) else probes_without_curve(methods[one], found))
    fewer = seeds * (len(found.kept.common) < found.kept.seeds)
    compared = ", ".join(filter(None, [fill(entry.compared, place), found.without, branch, fewer, without]))
    return MeasuredEffect(entry.parsed.effect(sides.__getitem__), profile, compared)


def _branch(method: Method) -> str:
    """Say in which stage a branch is compared, and after what."""
    run, stage = method.first, method.branch_stage or 1
    return (
        f"in stage {stage}, {run.stages[stage - 1]}, from one checkpoint after {', '.join(run.manifest.trained_before)}"
    )


def name_edge(rate: float, tried: Sequence[float]) -> str:
    """Say that a rate is the lowest or highest of those tried, so that a better one may lie beyond; empty for any other."""
    if len(tried) > 1 and rate in {min(tried), max(tried)}:
        return f", the {'lowest' if rate == min(tried) else 'highest'} tried"
    return ""


def _best(
    entry: ClaimEntry, metric: Metric, place: ClaimScope, by_rate: ByRate
) -> tuple[Estimate, Mapping[int, ChosenRate]]:
    """Return each seed's metric at the learning rate that is best on the other half of the seeds, and these rates."""
    figure, task, stage = claim_metrics()[metric.name], _task(metric, place), entry.scope.last
    estimates = {rate: _estimate(metric, method, place, stage) for rate, method in by_rate.items()}
    assert isinstance(figure, Figure)  # a claim at the best rate compares scores
    better = 1 if figure.higher_is_better else -1
    chosen = choose_rates({rate: (better * found).by_seed for rate, found in estimates.items()})
    sides = {seed: by_rate[each.rate].sides(figure, task, stage)[seed] for seed, each in chosen.items()}
    return estimate_of(sides), chosen
