"""Evaluate a finished stage in another process while its run trains the next one.

The run says which stage is finished, the other process evaluates what its folder lacks, and before the next stage is evaluated
the run does what is left. A lock keeps them apart, so nothing is evaluated twice, and a process that is lost costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

from harness.config.run_spec import PlannedStage, RunSpec
from harness.errors import RunError
from harness.pipeline.evaluate_stage import StageEvaluator
from harness.pipeline.resources import RunResources
from harness.rundir.locks import waiting_lock
from harness.rundir.process.progress import Report
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import RunStore

Begin = Callable[[RunSpec, int], bool]  # begins to evaluate a finished stage elsewhere; False where nothing is free


class Evaluations:
    """Evaluates the stages of a run: when they are trained, or elsewhere with `begin` while the next one trains."""

    def __init__(self, evaluator: StageEvaluator, begin: Begin | None) -> None:
        self.evaluator, self.begin = evaluator, begin
        self._left: tuple[StageFolder, Path, str] | None = None

    def after(self, folder: StageFolder, checkpoint: Path, stage: PlannedStage) -> None:
        """Evaluate a stage that is trained, or begin it; the last one is evaluated here."""
        spec, when = self.evaluator.spec, f"after {stage.name}"
        if self.begin is not None and stage.index < len(spec.stages) and self.begin(spec, stage.index):
            self._left = folder, checkpoint, when
            return
        self.evaluator.evaluate(folder, checkpoint, when)

    def finish(self) -> None:
        """Wait for what was begun elsewhere, and evaluate what is left of it."""
        if self._left is not None:
            with _lock_of(self._left[0]):
                self.evaluator.evaluate(*self._left)
            self._left = None


def evaluate_beside(spec: RunSpec, index: int, report: Report) -> None:
    """Evaluate what stage `index` of a run lacks, in a process that is not the run's."""
    store = RunStore(spec.path)
    resources = RunResources(spec, report)
    stage = resources.spec.stages[index - 1]
    folder = store.stage(index, stage.name)
    if (done := folder.training_done) is None:
        raise RunError(f"{folder.path} is not trained yet, so it cannot be evaluated")
    resources.weights |= {"start": resources.verify(resources.start, "start"), f"stage_{index}": done.weights}
    resources.files[f"stage_{index}"] = done.files
    with _lock_of(folder), closing(resources.engines):
        StageEvaluator(resources, store.stage(0)).evaluate(folder, folder.checkpoint, f"after {stage.name}")


def _lock_of(folder: StageFolder) -> AbstractContextManager[None]:
    return waiting_lock(folder.path.with_name(f".{folder.path.name}.lock"))
