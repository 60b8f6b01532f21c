"""Methods beside a baseline: what each learned, forgot and ended with, every figure a paired difference.

P values are Holm's within a measure, over its tasks and all methods compared. Forgetting and BWT are judged only where
learning is matched: a method that learns less has less to lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from harness.errors import RunError
from harness.stats.intervals import t_interval
from reports.compare.paired import compare_pairs, compare_values, noise_floor
from reports.compare.rows import (
    AVERAGE,
    BACKWARD,
    ENTROPY,
    FINAL,
    FORGOTTEN,
    LEARNED,
    MARGIN,
    SCORE,
    ComparisonRow,
    Measure,
    how_matched,
    with_holm,
)
from reports.data.methods import Method
from reports.data.paired_cells import SeedPair, Side, Term, restriction
from reports.document.sentences import format_count

OTHER_TASKS = (
    "{base} and {other} end with other tasks, so they can forget other ones: forgetting and BWT are not compared."
)


@dataclass(frozen=True)
class Comparison:
    """Methods beside the first of them; `stage` is the last stage that counts, `tasks` limits the rows to some."""

    methods: Sequence[Method]
    stage: int | None = None
    tasks: Sequence[str] = ()
    shared_items: bool = False
    margin: float = MARGIN

    def __post_init__(self) -> None:
        _check_tasks(self.methods, self.tasks)
        if self.stage is not None:
            _check_stage(self.methods, self.stage)

    @property
    def base(self) -> Method:
        """The baseline."""
        return self.methods[0]

    @cached_property
    def rows(self) -> list[ComparisonRow]:
        """The rows that are shown, method by method."""
        return [row for row in self._all if not self.tasks or row.task in self.tasks]

    @cached_property
    def _all(self) -> list[ComparisonRow]:
        """All rows with Holm's p values, so that these do not depend on what is shown."""
        return with_holm([row for method in self.methods[1:] for row in self._rows(method)])

    def row(self, other: str, measure: Measure, task: str = "") -> ComparisonRow | None:
        """Return one row; None where it cannot be compared."""
        found = [row for row in self._all if (row.other, row.measure, row.task) == (other, measure, task)]
        return found[0] if found else None

    def last(self, method: Method) -> int:
        """The last stage that counts of a method."""
        return len(method.first.stages) if self.stage is None else self.stage

    def pairs(self, method: Method, measure: Measure, task: str) -> list[SeedPair]:
        """Return the runs of a method and of the baseline at the same seeds, with the measure's terms of each."""
        sides = ((self.base, one, method, other) for one, other in self.seeds(method))
        return [
            SeedPair(one, self._side(b, one, measure, task), self._side(m, other, measure, task))
            for b, one, m, other in sides
        ]

    def seeds(self, method: Method) -> list[tuple[int, int]]:
        """Return the seeds that are paired, the baseline's first; single runs are paired whatever their seeds."""
        ours, theirs = list(self.base.by_seed), list(method.by_seed)
        if len(ours) == len(theirs) == 1:
            return [(ours[0], theirs[0])]
        return [(seed, seed) for seed in ours if seed in theirs]

    def notes(self) -> list[str]:
        """Return in sentences whose grades are shown, and what was left out, restricted or never measured."""
        found = [note for method in self.methods[1:] for note in dict.fromkeys(self._notes(method))]
        return [*graded_by(self.methods), *found]

    def averages(self, method: Method) -> list[ComparisonRow]:
        """Return a method's rows over all trained tasks, p values not adjusted; none where the two trained on other tasks."""
        ours, theirs = (set(self._trained(each)) for each in (self.base, method))
        return list(self._averages(method)) if ours == theirs != set() else []

    def _side(self, method: Method, seed: int, measure: Measure, task: str) -> Side:
        evaluations = method.by_seed[seed]
        return Side(evaluations, measure.terms(method, evaluations, self.last(method), task))

    def _rows(self, method: Method) -> Iterator[ComparisonRow]:
        if not self.seeds(method):
            ours, theirs = (", ".join(map(str, each.by_seed)) for each in (self.base, method))
            raise RunError(
                f"{self.base.name} has seeds {ours} and {method.name} {theirs}, none in common; run both with the same seeds"
            )
        shown = [task for task in method.tasks if task in self.base.tasks]
        trained = [self._trained(each) for each in (self.base, method)]
        yield from (self._row(method, LEARNED, task) for task in shown if all(task in names for names in trained))
        averages = self.averages(method)
        yield from averages
        if averages and self.base.on_policy and method.on_policy:
            yield from self._entropy(method)
        yield from (self._row(method, FINAL, task) for task in shown)
        if averages:
            yield self._row(method, FINAL, AVERAGE)

    def _averages(self, method: Method) -> Iterator[ComparisonRow]:
        learned = self._row(method, LEARNED, AVERAGE)
        yield learned
        kept = [self._retention(method, measure, learned) for measure in (FORGOTTEN, BACKWARD)]
        yield from (row for row in kept if row is not None and row.difference.seeds.seeds)

    def _retention(self, method: Method, measure: Measure, learned: ComparisonRow) -> ComparisonRow | None:
        """Return what was kept, over seeds that the row of learning has; None where it is of other tasks on the two sides."""
        by_seed = learned.difference.by_seed
        pairs = [pair for pair in self.pairs(method, measure, AVERAGE) if pair.seed in by_seed.index]
        if not same_tasks(pairs):
            return None
        found = compare_pairs(pairs, self.shared_items)
        matched = how_matched(t_interval(by_seed.reindex(found.by_seed.index)), self.margin)
        return ComparisonRow(measure, "", self.base.name, method.name, found, matched, noise=noise_floor(pairs))

    def _row(self, method: Method, measure: Measure, task: str) -> ComparisonRow:
        pairs = self.pairs(method, measure, task or AVERAGE)
        found = compare_pairs(pairs, self.shared_items)
        return ComparisonRow(measure, task, self.base.name, method.name, found, noise=noise_floor(pairs))

    def _entropy(self, method: Method) -> Iterator[ComparisonRow]:
        ours, theirs = (each.training("entropy", self.last(each)) for each in (self.base, method))
        paired = [(one, other) for one, other in self.seeds(method) if one in ours.index and other in theirs.index]
        if paired:
            index = [one for one, _ in paired]
            values = (
                pd.Series([ours[one] for one, _ in paired], index),
                pd.Series([theirs[o] for _, o in paired], index),
            )
            yield ComparisonRow(ENTROPY, "", self.base.name, method.name, compare_values(*values))

    def _trained(self, method: Method) -> list[str]:
        return [task for task, stage in method.stage_of.items() if stage <= self.last(method)]

    def _notes(self, method: Method) -> Iterator[str]:
        paired = self.seeds(method)
        for each, seeds in ((self.base, [one for one, _ in paired]), (method, [other for _, other in paired])):
            if alone := [str(seed) for seed in each.by_seed if seed not in seeds]:
                many = len(alone) > 1
                told = f"seeds {', '.join(alone)} have" if many else f"seed {alone[0]} has"
                yield f"{each.name}: {told} no partner and {'are' if many else 'is'} left out."
        if any(one != other for one, other in paired):
            yield f"{self.base.name} and {method.name} differ in their seed: items are paired, seeds are not."
        if self.base.first.trains != method.first.trains:
            yield f"{self.base.name} and {method.name} were not trained on the same stages; tasks are compared by name."
        if not same_tasks(self.pairs(method, BACKWARD, AVERAGE)):
            yield OTHER_TASKS.format(base=self.base.name, other=method.name)
        others = [
            task for task in [*self.base.tasks, *method.tasks] if (task in self.base.tasks) != (task in method.tasks)
        ]
        if others:
            yield f"Only one of {self.base.name} and {method.name} has {', '.join(others)}: left out."
        for each in (self.base, method):
            if not (each.on_policy or each.control):
                yield f"{each.name} trains on references, so its entropy in training is not compared."
        rows = [row for row in self.rows if row.other == method.name]
        if fewer := [row for row in rows if row.difference.seeds.seeds < len(paired)]:
            counted = f"{len(fewer)} of {format_count(len(rows), 'row')}"
            yield f"{method.name}: {counted} leave out seeds that are not evaluated yet."
        if told := restriction(self.pairs(method, FINAL, AVERAGE)):
            yield f"Restricted to the items that both have: {told}; that their grader is the same was not checked."


def same_tasks(pairs: Sequence[SeedPair]) -> bool:
    """Whether both sides of every pair have terms of the same tasks, in whatever order these were trained."""
    return all({t.task for t in pair.base.terms} == {t.task for t in pair.other.terms} for pair in pairs)


def graded_by(methods: Sequence[Method]) -> list[str]:
    """Say which grader was chosen, and which tasks show their own grades because they have none by it."""
    grader = methods[0].frames.grader
    scores = pd.concat([method.frames.scores for method in methods])
    own = dict.fromkeys(scores.loc[~scores["metric"].isin(["", grader]), "task"])
    kept = f"; {', '.join(own)}, not graded by it, by their own" if own else ""
    return [f"Scores are by grader {grader}{kept}."] if grader else []


@dataclass(frozen=True)
class Stages:
    """Each method's scores after one stage beside those after another, on the same items: what the stages between did."""

    methods: Sequence[Method]
    before: int
    after: int
    tasks: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_tasks(self.methods, self.tasks)
        for stage in (self.before, self.after):
            _check_stage(self.methods, stage)

    @cached_property
    def rows(self) -> list[ComparisonRow]:
        """A row per method and task, with Holm's p values."""
        return with_holm([self._row(method, task) for method in self.methods for task in self._shown(method)])

    def notes(self) -> list[str]:
        """Return whose grades are shown; nothing else, as a run's own cells are on the same items."""
        return graded_by(self.methods)

    def _shown(self, method: Method) -> list[str]:
        return [task for task in method.tasks if task in (self.tasks or method.tasks)]

    def _row(self, method: Method, task: str) -> ComparisonRow:
        pairs = [
            SeedPair(seed, Side(evaluations, [Term(task, self.before)]), Side(evaluations, [Term(task, self.after)]))
            for seed, evaluations in method.by_seed.items()
        ]
        names = [f"{method.name} after stage {stage}" for stage in (self.before, self.after)]
        return ComparisonRow(SCORE, task, names[0], names[1], compare_pairs(pairs), noise=noise_floor(pairs))


def _check_tasks(methods: Sequence[Method], tasks: Sequence[str]) -> None:
    known = list(dict.fromkeys(task for method in methods for task in method.tasks))
    if unknown := [task for task in tasks if task not in known]:
        raise RunError(f"--task {unknown[0]}: no run has it; they have {', '.join(known)}")


def _check_stage(methods: Sequence[Method], stage: int) -> None:
    fewest = min(len(method.first.stages) for method in methods)
    if not 0 <= stage <= fewest:
        raise RunError(f"--stage {stage}: the runs have the stages 0 (the start) to {fewest}")
