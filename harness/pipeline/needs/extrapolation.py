"""What a whole run takes, computed from what a short one took: one function of measured and planned numbers.

A stage's further steps take the median of the measured ones. A cell's further items take as long as the measured ones, with
all of their answers. What a stage's training takes beyond its steps is divided by the measured points of its learning curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class CellPlan:
    """A cell that every stage evaluates: its items, and whether their answers are sampled."""

    items: int
    sampled: bool = False


@dataclass(frozen=True)
class StagePlan:
    """A stage of the whole run: its steps, the points of its learning curve, and whether all methods of a seed share it."""

    steps: int
    points: int = 0
    shared: bool = False


@dataclass(frozen=True)
class RunPlan:
    """A whole run: its stages and cells by name, and how often the start's sampled cells are evaluated again."""

    stages: Mapping[str, StagePlan]
    cells: Mapping[str, CellPlan]
    repeats: int = 0


def points_of(steps: int, every: int | None) -> int:
    """Return the number of points of a learning curve: the first, every `every` steps, and the last; 0 for None."""
    return 0 if every is None else len({*range(0, steps + 1, every), steps})


@dataclass(frozen=True)
class MeasuredCell:
    """A cell of the short run: its items, their seconds and bytes with all answers, and the other bytes of their file."""

    items: int
    seconds: float
    size: float = 0.0
    head: float = 0.0


@dataclass(frozen=True)
class MeasuredStage:
    """A stage of the short run: seconds of training in all and of each step, and the points of its learning curve."""

    seconds: float
    steps: Sequence[float]
    points: int = 0


@dataclass(frozen=True)
class MeasuredRun:
    """A short run: seconds by phase, its stages by name, and the cells that were answered.

    `cells` holds one mapping for the start and for each stage, `teacher` the teacher's own.
    """

    train: float
    evaluate: float
    total: float
    stages: Mapping[str, MeasuredStage]
    cells: Sequence[Mapping[str, MeasuredCell]]
    teacher: Mapping[str, MeasuredCell]


@dataclass(frozen=True)
class Times:
    """Seconds of a whole run, and the bytes of its answers.

    `stages` is each stage's training. `common` is the part of `total` that the methods of a seed do once, `teacher` the part
    that all runs do once.
    """

    train: float
    evaluate: float
    total: float
    stages: Mapping[str, float]
    common: float
    teacher: float
    sample_bytes: float


def extrapolate(measured: MeasuredRun, plan: RunPlan) -> Times:
    """Return what the whole run takes. Times of work that does not grow, such as loading models, stay as measured."""
    stages: dict[str, float] = {}
    for name, stage in plan.stages.items():
        if (done := measured.stages.get(name)) is not None:
            of_step = median(done.steps[1:] or done.steps)  # the first step is slower
            of_point = max(0.0, done.seconds - sum(done.steps)) / done.points if done.points else 0.0
            more = (stage.steps - len(done.steps)) * of_step + (stage.points - done.points) * of_point
            stages[name] = done.seconds + more
    whole = [{name: _seconds(plan.cells[name], cell) for name, cell in cells.items()} for cells in measured.cells]
    teacher = {name: _seconds(plan.cells[name], cell) for name, cell in measured.teacher.items()}
    noise = plan.repeats * sum(seconds for name, seconds in whole[0].items() if plan.cells[name].sampled)
    answered = [cell for cells in (*measured.cells, measured.teacher) for cell in cells.values()]
    more_evaluate = sum(map(_total, (*whole, teacher))) + noise - sum(cell.seconds for cell in answered)
    more_train = sum(stages.values()) - sum(measured.stages[name].seconds for name in stages)
    common = _total(whole[0]) + noise
    for (name, stage), cells in zip(plan.stages.items(), whole[1:], strict=True):
        if stage.shared:
            common += stages.get(name, 0.0) + _total(cells)
    sizes = [_size(plan, name, cell) for cells in (*measured.cells, measured.teacher) for name, cell in cells.items()]
    sizes += [
        plan.repeats * _size(plan, name, cell) for name, cell in measured.cells[0].items() if plan.cells[name].sampled
    ]
    return Times(
        train=measured.train + more_train,
        evaluate=measured.evaluate + more_evaluate,
        total=measured.total + more_train + more_evaluate,
        stages=stages,
        common=common,
        teacher=_total(teacher),
        sample_bytes=sum(sizes),
    )


def seconds_of_all(methods: Sequence[Times], seeds: int) -> float:
    """Return the seconds of all runs one after another: a run of each method at each seed, with what they share done once."""
    alone = seeds * sum(times.total - times.common - times.teacher for times in methods)
    return alone + seeds * max(times.common for times in methods) + max(times.teacher for times in methods)


def _seconds(plan: CellPlan, cell: MeasuredCell) -> float:
    return cell.seconds * plan.items / cell.items


def _size(plan: RunPlan, name: str, cell: MeasuredCell) -> float:
    return cell.head + cell.size * plan.cells[name].items / cell.items


def _total(seconds: Mapping[str, float]) -> float:
    return sum(seconds.values())
