"""Methods next to a baseline: what each learned, forgot and ended with, every figure a paired difference.

The rows are the registered figures that name where a comparison shows them (`Figure.compared`). P values are Holm's within a
figure, over its tasks and all methods compared. Forgetting and BWT are judged only where learning is matched: a method that
learns less has less to forget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from harness.errors import RunError
from harness.stats.continual import ACCURACY, BACKWARD, FIGURES, LEARNING
from harness.stats.estimates import Estimate
from harness.stats.figure_terms import learned_tasks
from harness.stats.learning.matching import MARGIN, how_matched
from harness.stats.paired import compare_estimates, compare_unpaired
from harness.stats.score_matrix import Figure
from reports.compare.rows import AVERAGE, ComparisonRow, Quantity, with_holm
from reports.data.calibration import CALIBRATION, calibration, uncalibrated_tasks
from reports.data.learning_curves import KEPT, StagePair, mean_of_stages, probes_without_curve, stage_pairs
from reports.data.methods import ENTROPY, Method, different_starts
from reports.data.paired_cells import (
    SeedPair,
    compare_groups,
    compare_pairs,
    complete_pairs,
    noise_of_pairs,
    restriction,
)
from reports.data.setting_differences import describe_differences
from reports.formatting import format_count

SCORE = replace(ACCURACY, short="score", formula="R[i][j]")
OTHER_LEARNING = (
    "{base} and {other} learn different tasks by their own method, as a stage with an adapter of its own counts for no "
    "method: what they learned on average is not compared."
)
OTHER_TASKS = (
    "{base} and {other} end with different tasks, so they can forget different ones: forgetting and BWT are not "
    "compared."
)


@dataclass(frozen=True)
class Comparison:
    """Methods compared with the first of them, the baseline.

    `stage` is the last stage that counts (None: each run's last), `tasks` limits the rows that are shown, and `shared_items`
    allows runs with different items. Learning within `margin` (a share) of the baseline's counts as matched.
    """

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

    def row(self, other: str, quantity: Quantity, task: str = "") -> ComparisonRow | None:
        """Return one row; None where it cannot be compared."""
        wanted = (other, quantity.name, task)
        return next((row for row in self._all if (row.other, row.quantity.name, row.task) == wanted), None)

    def last(self, method: Method) -> int:
        """The last stage that counts of a method."""
        return len(method.first.stages) if self.stage is None else self.stage

    def pairs(self, method: Method, figure: Figure, task: str = "") -> list[SeedPair]:
        """Return the runs of the baseline and of a method at the same seeds, with the figure's terms of each."""
        last = (self.last(self.base), self.last(method))
        return [
            SeedPair(
                one,
                self.base.by_seed[one].side(figure, last[0], task),
                method.by_seed[other].side(figure, last[1], task),
            )
            for one, other in self.seeds(method)
        ]

    def seeds(self, method: Method) -> list[tuple[int, int]]:
        """Return the seeds that are paired, the baseline's first; single runs are paired even if their seeds differ."""
        ours, theirs = list(self.base.by_seed), list(method.by_seed)
        if len(ours) == len(theirs) == 1:
            return [(ours[0], theirs[0])]
        return [(seed, seed) for seed in ours if seed in theirs]

    def pairs_seeds(self, method: Method) -> bool:
        """Whether runs of equal seeds are pairs: not where their start weights differ, unless each side has one run."""
        single = len(self.base.by_seed) == len(method.by_seed) == 1
        return single or not different_starts(self.base, method)

    def notes(self, only: str = "") -> list[str]:
        """Return sentences on whose grades are shown, and on what was left out, restricted or never measured.

        `only` limits those on what was left out to one method.
        """
        shown = [method for method in self.methods[1:] if only in ("", method.name)]
        found = [note for method in shown for note in dict.fromkeys(self._notes(method))]
        return [*graded_by(self.methods), *found]

    def averages(self, method: Method) -> list[ComparisonRow]:
        """Return a method's rows over all trained tasks, p values not adjusted; none where the two trained different tasks."""
        if not self.share_tasks(method):
            return []
        compared = [figure for figure in FIGURES.values() if figure.compared]
        rows = [row for figure in compared if (row := self.average(method, figure))]
        sides = (self.base, method)
        trained = [Estimate(each.training(ENTROPY, self.last(each))) for each in sides if each.on_policy]
        entropy = self._row_of(method, ENTROPY, *trained) if len(trained) == 2 else []
        sampled = self._row_of(method, CALIBRATION, *(calibration(each, self.last(each)) for each in sides))
        kept = mean_of_stages(self._stage_pairs(method))
        return [*rows, *entropy, *sampled, *([self._kept(method, kept, AVERAGE)] if kept else [])]

    def _rows(self, method: Method) -> Iterator[ComparisonRow]:
        """Yield the rows by task of every figure, each followed by its average."""
        if not self.seeds(method):
            ours, theirs = (", ".join(map(str, each.by_seed)) for each in (self.base, method))
            raise RunError(
                f"{self.base.name} has seeds {ours} and {method.name} {theirs}, none in common; run both with the same seeds"
            )
        averages = {row.quantity.name: row for row in self.averages(method)}
        for figure in FIGURES.values():
            if figure.compared == "tasks":
                yield from self._by_task(method, figure)
            if figure.name in averages:
                yield averages.pop(figure.name)
        yield from averages.values()
        yield from (self._kept(method, pair, pair.name) for pair in self._stage_pairs(method))

    def _by_task(self, method: Method, figure: Figure) -> Iterator[ComparisonRow]:
        """Yield a figure's row of each task that both have, but what both learned in a stage with an adapter of its own.

        Such a stage trains both alike: its difference is 0 by construction, and testing it would raise Holm's p of the others.
        """
        ours, theirs = self.base.first, method.first
        alike = {*ours.manifest.fixed_tasks} & {*theirs.manifest.fixed_tasks}
        if (ours.suite, ours.start) != (theirs.suite, theirs.start):
            alike = set()
        for task in method.tasks:
            if task in alike and figure.over is learned_tasks:
                continue
            pairs = self.pairs(method, figure, task) if task in self.base.tasks else []
            if pairs and all(pair.base.terms and pair.other.terms for pair in pairs):
                yield self._row(method, figure, task, pairs)

    def average(self, method: Method, figure: Figure) -> ComparisonRow | None:
        """Return a figure over all its tasks; None where the two sides have different tasks, or no seed has the figure.

        Forgetting and BWT count only the seeds whose learning is known, because they are judged at matched learning.
        """
        pairs, task = self.pairs(method, figure), AVERAGE if figure.compared == "tasks" else ""
        if not figure.needs_matched_learning:
            return self._row(method, figure, task, pairs) if same_tasks(complete_pairs(pairs)) else None
        learned = self.pairs(method, LEARNING)
        if not same_tasks(pairs) or not same_tasks(complete_pairs(learned)):
            return None
        if self.pairs_seeds(method):
            known = {pair.seed for pair in complete_pairs(learned)}
            pairs = [pair for pair in complete_pairs(pairs) if pair.seed in known]
            learned = [pair for pair in learned if pair.seed in {pair.seed for pair in pairs}]
        row = self._row(method, figure, task, pairs)
        matched = how_matched(self._row(method, LEARNING, "", learned).difference.interval, self.margin)
        return replace(row, learning=matched) if row.difference.seeds.seeds else None

    def _row(self, method: Method, figure: Figure, task: str, pairs: Sequence[SeedPair]) -> ComparisonRow:
        if self.pairs_seeds(method):
            found = compare_pairs(pairs, self.shared_items)
        else:
            given = "" if task == AVERAGE else task
            found = compare_groups(*(each.sides(figure, given, self.last(each)) for each in (self.base, method)))
        return ComparisonRow(figure, task, self.base.name, method.name, found, noise=noise_of_pairs(pairs))

    def _row_of(self, method: Method, quantity: Quantity, ours: Estimate, theirs: Estimate) -> list[ComparisonRow]:
        """Return the row of a quantity from the estimates of baseline and method; none where they cannot be compared."""
        paired = [(one, other) for one, other in self.seeds(method) if one in ours.by_seed and other in theirs.by_seed]
        if not self.pairs_seeds(method):
            found = compare_unpaired(ours, theirs) if ours.by_seed and theirs.by_seed else None
        elif paired:
            base, other = ours.of_seeds([one for one, _ in paired]), theirs.of_seeds([other for _, other in paired])
            other = Estimate(dict(zip(base.by_seed, other.by_seed.values(), strict=True)), other.items)
            found = compare_estimates(base, other)
        else:
            found = None
        return [ComparisonRow(quantity, "", self.base.name, method.name, found)] if found else []

    def _stage_pairs(self, method: Method) -> list[StagePair]:
        last = min(self.last(self.base), self.last(method))
        return [pair for pair in stage_pairs(self.base, method) if pair.stage <= last]

    def _kept(self, method: Method, pair: StagePair, task: str) -> ComparisonRow:
        """Return the row of what the two methods kept at equal learning, in one stage or on average over stages."""
        base, other = (Estimate({}),) * 2 if pair.obstacle else (pair.kept.base, pair.kept.other)
        return ComparisonRow(KEPT, task, self.base.name, method.name, compare_estimates(base, other), pair.obstacle)

    def share_tasks(self, method: Method) -> bool:
        """Whether the two trained the same tasks, by whatever adapter, up to the last stage that counts."""
        ours, theirs = (
            {task for task, stage in each.stage_of.items() if stage <= self.last(each)} for each in (self.base, method)
        )
        return ours == theirs != set()

    def _notes(self, method: Method) -> Iterator[str]:
        paired = self.seeds(method)
        for each, seeds in ((self.base, [one for one, _ in paired]), (method, [other for _, other in paired])):
            if self.pairs_seeds(method) and (unpaired := [str(seed) for seed in each.by_seed if seed not in seeds]):
                many = len(unpaired) > 1
                which = f"seeds {', '.join(unpaired)} have" if many else f"seed {unpaired[0]} has"
                yield f"{each.name}: {which} no partner and {'are' if many else 'is'} left out."
        if not self.pairs_seeds(method):
            yield (
                f"{self.base.name} and {method.name} start from different weights at equal seeds: items are paired, seeds "
                f"are not, and all of them count, {len(self.base.by_seed)} and {len(method.by_seed)}."
            )
        if any(one != other for one, other in paired):
            yield f"{self.base.name} and {method.name} differ in their seed: items are paired, seeds are not."
        yield from describe_differences(self.base, method)
        if self.base.first.trains != method.first.trains:
            yield f"{self.base.name} and {method.name} were not trained on the same stages; tasks are compared by name."
        if not same_tasks(complete_pairs(self.pairs(method, LEARNING))):
            yield OTHER_LEARNING.format(base=self.base.name, other=method.name)
        if not same_tasks(self.pairs(method, BACKWARD)):
            yield OTHER_TASKS.format(base=self.base.name, other=method.name)
        others = [
            task for task in [*self.base.tasks, *method.tasks] if (task in self.base.tasks) != (task in method.tasks)
        ]
        if others:
            yield f"Only one of {self.base.name} and {method.name} has {', '.join(others)}: left out."
        for each in (self.base, method):
            if not (each.on_policy or each.control):
                yield f"{each.name} trains on references, so its entropy in training is not compared."
        if tasks := list(dict.fromkeys([*uncalibrated_tasks(self.base), *uncalibrated_tasks(method)])):
            yield (
                f"{CALIBRATION.short} leaves out {', '.join(tasks)}: one of the two profiles does not evaluate them, or their "
                "own top_k or top_p truncates what is sampled."
            )
        pairs = self._stage_pairs(method)
        if (mean := mean_of_stages(pairs)) and mean.without:
            yield f"{method.name}: the average of {KEPT.short} is {mean.without}, where nothing can be compared."
        kept = [probe for pair in pairs for probe in probes_without_curve(method, pair)]
        if kept:
            yield f"{KEPT.short} leaves out {', '.join(dict.fromkeys(kept))}: probes scored by likelihood have no curve."
        rows = [row for row in self.rows if row.other == method.name and row.quantity is not KEPT]
        if fewer := [row for row in rows if row.difference.seeds.seeds < len(paired)]:
            counted = f"{len(fewer)} of {format_count(len(rows), 'row')}"
            yield f"{method.name}: {counted} leave out seeds that are not evaluated yet."
        if restricted := restriction(self.pairs(method, ACCURACY)):
            yield f"Restricted to the items that both have: {restricted}; that their grader is the same was not checked."


def same_tasks(pairs: Sequence[SeedPair]) -> bool:
    """Whether both sides of every pair have terms of the same tasks, in any order of training."""
    return all(pair.base.tasks.keys() == pair.other.tasks.keys() for pair in pairs)


def graded_by(methods: Sequence[Method]) -> list[str]:
    """Say which grader was chosen, and which tasks show their own grades because they have none by it."""
    grader = methods[0].frames.grader
    scores = pd.concat([method.frames.scores for method in methods])
    own = dict.fromkeys(scores.loc[~scores["metric"].isin(["", grader]), "task"])
    kept = f"; {', '.join(own)}, not graded by it, by their own" if own else ""
    return [f"Scores are by grader {grader}{kept}."] if grader else []


@dataclass(frozen=True)
class StageComparison:
    """Compare each method's scores after two stages, on the same items: what the stages in between changed."""

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
        return with_holm(
            [
                self._row(method, task)
                for method in self.methods
                for task in method.tasks
                if task in (self.tasks or method.tasks)
            ]
        )

    def notes(self, only: str = "") -> list[str]:
        """Return a sentence on whose grades are shown; a run's own cells have the same items, so nothing is restricted."""
        return graded_by(self.methods)

    def _row(self, method: Method, task: str) -> ComparisonRow:
        pairs = [
            SeedPair(seed, *(evaluations.side(ACCURACY, stage, task) for stage in (self.before, self.after)))
            for seed, evaluations in method.by_seed.items()
        ]
        names = [f"{method.name} after stage {stage}" for stage in (self.before, self.after)]
        return ComparisonRow(SCORE, task, names[0], names[1], compare_pairs(pairs), noise=noise_of_pairs(pairs))


def _check_tasks(methods: Sequence[Method], tasks: Sequence[str]) -> None:
    known = list(dict.fromkeys(task for method in methods for task in method.tasks))
    if unknown := [task for task in tasks if task not in known]:
        raise RunError(f"--task {unknown[0]}: no run has it; they have {', '.join(known)}")


def _check_stage(methods: Sequence[Method], stage: int) -> None:
    fewest = min(len(method.first.stages) for method in methods)
    if not 0 <= stage <= fewest:
        raise RunError(f"--stage {stage}: the runs have the stages 0 (the start) to {fewest}; name one of these")
