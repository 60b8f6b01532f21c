"""Learning curves of runs, and what two methods kept at equal learning.

`harness/stats/learning/equal_learning.py` defines the comparison. Curves are measured under one evaluation profile,
`evaluation.curve_profile`, on the first test items of each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from harness.rundir.reader import RunDir, identity
from harness.rundir.records.training_records import CurvePoint
from harness.stats.estimates import Estimate, ItemTable
from harness.stats.learning.equal_learning import AtEqualLearning, Curve, at_equal_learning, over_stages
from harness.stats.two_way import two_way_interval
from reports.data.frames import Frames
from reports.data.matched_pairs import compared_labels
from reports.data.methods import Method, different_starts, methods_of

NO_CURVES = "no learning curves"
COLUMNS = ("learned", "reached", "kept")
OBSTACLE = "not comparable: "  # how each obstacle begins
OTHER_ITEMS = "not comparable: different items"
OTHER_PROFILES = "not comparable: different profiles"
OTHER_SEEDS = "not comparable: different seeds"
OTHER_STARTS = "not comparable: different starts"  # curves of one seed from different weights are not a pair


class CurveFigure(NamedTuple):
    """A figure of learning curves, as a row of a comparison names it."""

    name: str
    short: str
    formula: str
    unit: Literal["%", "points"]


KEPT = CurveFigure(
    "retention_at_equal_learning",
    "kept at equal learning",
    "mean over the learning L that both reach of R(t(L)) − R(0): R is the mean score of the first stage's task and the tasks "
    "with generated answers that the run does not train, t(L) the first step of the stage at which its own task has reached L",
    "points",
)


@dataclass(frozen=True)
class StagePair:
    """What two methods kept at equal learning in one stage, or on average over stages, which is stage 0.

    `obstacle` says why nothing is compared, and is else empty. `without` names the stages that an average leaves out.
    """

    stage: int
    name: str
    kept: AtEqualLearning
    obstacle: str = ""
    without: str = ""


def learning_curve_of(run: RunDir, stage: int) -> Curve | None:
    """Return a run's curve in a stage; None unless own tasks and other tasks of the stage share at least two points."""
    by_task: dict[str, dict[int, CurvePoint]] = {}
    for point in run.curve_points(stage):
        by_task.setdefault(point.task, {})[point.step] = point
    own = [task for task in by_task if task in run.trains[stage - 1]]
    others = [task for task in by_task if task not in own]
    steps = sorted(set.intersection(*(set(points) for points in by_task.values()))) if by_task else []
    if not own or not others or len(steps) < 2:
        return None
    learned = np.array([[by_task[task][step].score for step in steps] for task in own]).mean(axis=0)
    return Curve(learned, {task: _item_table([by_task[task][step] for step in steps]) for task in others})


def stage_pairs(base: Method, other: Method, tasks: Sequence[str] | None = None) -> list[StagePair]:
    """Compare two methods in every stage that both trained themselves on the same tasks and have curves of.

    `tasks` are those whose retention counts, None all. Seeds are paired by number, and not at all where start weights differ.
    """
    return _pair_stages(base, other, [curves_of(method, tasks) for method in (base, other)])


def curves_of(method: Method, tasks: Sequence[str] | None = None) -> list[dict[int, Curve]]:
    """Return for each stage the curves of a method's runs by seed; `tasks` are those whose retention counts, None all.

    A stage whose training has not ended is left out: its curve still grows, so its end is not what the method learned.
    """
    found: list[dict[int, Curve]] = []
    for stage in range(1, len(method.first.trains) + 1):
        of_stage: dict[int, Curve] = {}
        for seed, scores in method.by_seed.items():
            trained = scores.run.stage(stage).training_done is not None
            if trained and (curve := learning_curve_of(scores.run, stage)) is not None:
                kept = {task: table for task, table in curve.kept.items() if tasks is None or task in tasks}
                if kept:
                    of_stage[seed] = Curve(curve.learned, kept)
        found.append(of_stage)
    return found


def mean_of_stages(pairs: Sequence[StagePair]) -> StagePair | None:
    """Return the mean over the stages that are comparable, or what is in the way where none is; None without stages.

    Of a single stage it is that stage.
    """
    if len(pairs) < 2:
        return replace(pairs[0], stage=0, name="") if pairs else None
    left: dict[str, list[int]] = {}
    for pair in pairs:
        if pair.obstacle:
            left.setdefault(pair.obstacle, []).append(pair.stage)
    comparable = [pair.kept for pair in pairs if not pair.obstacle]
    if not comparable:
        reasons = [f"{why.removeprefix(OBSTACLE)} in {_name_stages(stages)}" for why, stages in left.items()]
        obstacle = next(iter(left)) if len(left) == 1 else f"{OBSTACLE}{'; '.join(reasons)}"
        return StagePair(0, "", at_equal_learning({}, {}), obstacle)
    kept = over_stages(comparable)
    without = _name_stages(sorted(stage for stages in left.values() for stage in stages))
    return StagePair(0, "", kept, kept.obstacle, f"without {without}" if without else "")


def at_equal_learning_of(
    base: Method, other: Method, tasks: Sequence[str] | None = None, stage: int | None = None
) -> StagePair | None:
    """Return what was kept of `tasks` (None: all) in one stage, or on average over stages; None without curves."""
    return mean_of_stages([pair for pair in stage_pairs(base, other, tasks) if stage in (None, pair.stage)])


def probes_without_curve(method: Method, pair: StagePair) -> list[str]:
    """Return the probes that a comparison leaves out: those scored by likelihood have no curve."""
    return [] if pair.obstacle else [probe for probe in method.first.probes if probe not in pair.kept.base.items]


def equal_learning_table(frames: Frames) -> pd.DataFrame:
    """Return a row per pair of methods and stage, and one for the mean over stages (stage 0); empty without any curve.

    All values are shares. `difference` is the first method minus the second, with its interval for another seed and other
    items. `low` and `high` are the ends of the common learning, mean over seeds. `seeds` of the `paired` seeds have common
    learning. `obstacle` says why nothing is compared. `without` names the stages that the mean leaves out.
    """
    methods, rows = {method.name: method for method in methods_of(frames)}, []
    curves = {name: curves_of(method) for name, method in methods.items()}
    for label, against in compared_labels(frames):
        pairs = _pair_stages(methods[against], methods[label], (curves[against], curves[label]))
        rows += _rows(label, against, pairs)
    return pd.DataFrame(rows)


def equal_learning_rows(base: Method, other: Method) -> list[dict[str, object]]:
    """Return the rows of `equal_learning_table` for two methods, with the `profile` of their curves; none without curves."""
    profile = base.first.manifest.curve_profile
    return [{**row, "profile": profile} for row in _rows(other.name, base.name, stage_pairs(base, other))]


def curve_frame(frames: Frames) -> pd.DataFrame:
    """Return a row per run, stage and point of its curve; values are shares, controls are left out.

    `learned` is the score of the stage's own task, `reached` its monotone fit, `kept` the change of the other tasks.
    """
    rows = []
    for run, label in frames.labelled:
        for stage, name in enumerate(run.stages, start=1):
            curve = None if run.manifest.control else learning_curve_of(run, stage)
            if curve is not None:
                own = {**identity(run, label), "stage": stage, "task": name}
                points = np.stack([curve.learned, curve.reached, curve.change], axis=1).tolist()
                rows += [{**own, "point": k, **dict(zip(COLUMNS, each, strict=True))} for k, each in enumerate(points)]
    return pd.DataFrame(rows)


def _pair_stages(base: Method, other: Method, curves: Sequence[Sequence[dict[int, Curve]]]) -> list[StagePair]:
    """Pair two methods' curves in the stages that both trained on the same tasks.

    A stage with an adapter of its own is one training for both, so it says nothing about their difference.
    """
    stages = zip(base.first.manifest.stages, other.first.manifest.stages, *curves, strict=False)
    profiles = {run.manifest.curve_profile for method in (base, other) for run in method.frames.runs}
    obstacle = OTHER_STARTS if different_starts(base, other) else OTHER_PROFILES if len(profiles) > 1 else ""
    unpaired = StagePair(0, "", at_equal_learning({}, {}), obstacle) if obstacle else None
    return [
        replace(unpaired, stage=number, name=stage.name) if unpaired else _stage_pair(number, stage.name, ours, theirs)
        for number, (stage, also, ours, theirs) in enumerate(stages, start=1)
        if stage.trains == also.trains and not (stage.adapter or also.adapter) and ours and theirs
    ]


def _stage_pair(stage: int, name: str, base: dict[int, Curve], other: dict[int, Curve]) -> StagePair:
    items = {
        tuple((task, table.ids, table.clusters) for task, table in sorted(curve.kept.items()))
        for side in (base, other)
        for curve in side.values()
    }
    if len(items) > 1:
        return StagePair(stage, name, at_equal_learning({}, {}), OTHER_ITEMS)
    kept = at_equal_learning(base, other)
    return StagePair(stage, name, kept, kept.obstacle if base.keys() & other.keys() else OTHER_SEEDS)


def _item_table(points: Sequence[CurvePoint]) -> ItemTable:
    values = np.array([point.items for point in points], dtype=np.float64).T
    return ItemTable(values, tuple(map(str, range(len(values)))), points[0].clusters)


def _rows(label: str, against: str, pairs: Sequence[StagePair]) -> list[dict[str, object]]:
    mean = [] if len(pairs) < 2 else [mean_of_stages(pairs)]
    return [_row(label, against, pair) for pair in (*mean, *pairs) if pair is not None]


def _row(label: str, against: str, pair: StagePair) -> dict[str, object]:
    common = np.array([each[:2] for each in pair.kept.common.values()], dtype=np.float64).reshape(-1, 2)
    low, high = common.mean(axis=0) if len(common) else (np.nan, np.nan)
    return {
        "label": label,
        "against": against,
        "stage": pair.stage,
        "task": pair.name,
        "low": low,
        "high": high,
        "difference": two_way_interval(Estimate({}) if pair.obstacle else pair.kept.difference).of_difference(
            KEPT.unit
        ),
        "seeds": len(pair.kept.common),
        "paired": pair.kept.seeds,
        "obstacle": pair.obstacle,
        "without": pair.without,
    }


def _name_stages(stages: Sequence[int]) -> str:
    numbers = ", ".join(map(str, stages))
    return f"stages {numbers}" if len(stages) > 1 else f"stage {numbers}" if stages else ""
